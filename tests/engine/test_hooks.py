from types import SimpleNamespace

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from mpcl.engine.adaptation import Masking
from mpcl.engine.build import build_adaptation_hook
from mpcl.engine.metrics import DeviceMetrics
from mpcl.self_training.teacher import EMATeacher
from mpcl.structures.step import AdaptationStep
from mpcl.structures.view import View


@pytest.fixture
def hook(tiny_cfg):
    cfg = tiny_cfg("daformer")
    torch.manual_seed(0)
    student = build_model(cfg)
    hook = build_adaptation_hook(cfg, student, EMATeacher.from_config(cfg, student))
    hook.trainer = SimpleNamespace(
        iter=0,
        storage=EventStorage(0),
        start_iter=0,
        metrics=DeviceMetrics(),
        autocast=lambda: torch.autocast("cpu", enabled=False),
    )
    hook.before_train()
    return hook


def make_step(label=None):
    label = torch.randint(0, 4, (2, 64, 64)) if label is None else label
    source = View(torch.randn(2, 3, 64, 64), label, None, label != 255)
    return AdaptationStep(0, source, target=torch.randn(2, 3, 64, 64))


def test_mixed_view_is_source_where_pasted_and_pseudo_label_elsewhere(hook):
    hook.augment = lambda images: images
    step = make_step()
    hook.before_forward(step)
    mask, mixed, pseudo = step.mixed.from_source, step.mixed, step.pseudo_label
    assert mask.any() and not mask.all()
    assert torch.equal(mixed.label[mask], step.source.label[mask])
    assert torch.equal(mixed.label[~mask], pseudo.label[~mask])
    assert (mixed.weight[mask] == 1).all()
    assert torch.equal(mixed.weight[~mask], pseudo.weight[~mask])
    assert mixed.trusted[mask].all()
    assert torch.equal(mixed.trusted[~mask], pseudo.confident[~mask])
    pixels = mask[:, None].expand_as(step.target)
    assert torch.equal(mixed.images[pixels], step.source.images[pixels])
    assert torch.equal(mixed.images[~pixels], step.target[~pixels])


def test_pseudo_labels_come_from_the_teacher_on_unaugmented_target(hook):
    step = make_step()
    hook.before_forward(step)
    with torch.no_grad():
        logits = hook.teacher.model.score(step.target)
    logits = torch.nn.functional.interpolate(logits, size=(64, 64), mode="bilinear")
    assert torch.equal(step.pseudo_label.label, logits.argmax(1))
    assert not step.pseudo_label.weight.requires_grad


def test_all_ignored_source_leaves_a_usable_step(hook):
    step = make_step(torch.full((2, 64, 64), 255))
    hook.before_forward(step)
    assert torch.isfinite(step.mixed.images).all()
    assert not (step.mixed.trusted & (step.mixed.label == 255)).any()


def test_inputs_are_not_modified(hook):
    step = make_step()
    before = step.source.images.clone(), step.target.clone(), step.source.label.clone()
    hook.before_forward(step)
    assert torch.equal(step.source.images, before[0]) and torch.equal(step.target, before[1])
    assert torch.equal(step.source.label, before[2])


def test_teacher_follows_after_the_step(hook):
    start = hook.teacher.model.sem_seg_head.classifier.weight.clone()
    with torch.no_grad():
        hook.student.sem_seg_head.classifier.weight.add_(1.0)
    hook.after_step()
    torch.testing.assert_close(hook.teacher.model.sem_seg_head.classifier.weight, start + 0.5)


def test_masked_view_is_the_target_with_hidden_blocks_and_unmixed_labels(hook):
    hook.masking = Masking(block_size=16, ratio=0.5, images="target", augment=False)
    step = make_step()
    hook.before_forward(step)
    masked, pseudo = step.masked, step.pseudo_label
    hidden = masked.images == 0
    assert hidden.any() and torch.equal(masked.images[~hidden], step.target[~hidden])
    assert torch.equal(masked.label, pseudo.label) and torch.equal(masked.weight, pseudo.weight)
    assert "masked" not in step.images


def test_masked_view_is_augmented_on_request(hook):
    hook.augment = lambda images: images + 100
    hook.masking = Masking(block_size=16, ratio=0.0, images="target", augment=True)
    step = make_step()
    hook.before_forward(step)
    assert torch.equal(step.masked.images, step.target + 100)


def test_masked_pair_is_the_first_image_of_each_domain(hook):
    hook.masking = Masking(block_size=16, ratio=0.0, images="pair", augment=False)
    step = make_step()
    hook.before_forward(step)
    masked = step.masked
    assert torch.equal(masked.images, torch.stack([step.source.images[0], step.target[0]]))
    assert torch.equal(masked.label[0], step.source.label[0])
    assert torch.equal(masked.label[1], step.pseudo_label.label[0])
    assert (masked.weight[0] == 1).all()
    assert torch.equal(masked.weight[1], step.pseudo_label.weight[0])


def test_reference_features_see_what_the_students_encoder_sees(tiny_cfg):
    cfg = tiny_cfg("hrda")
    student = build_model(cfg)
    hook = build_adaptation_hook(cfg, student, EMATeacher.from_config(cfg, student))
    hook.reference_encoder = lambda images: {student.deepest_feature: images}
    assert hook._reference_features(torch.randn(2, 3, 64, 64)).shape == (2, 3, 32, 32)
