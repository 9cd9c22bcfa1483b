"""What the hook of self-training does around the student's forward."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch.utils._python_dispatch import TorchDispatchMode

from mpcl.engine import AdaptationHook
from mpcl.engine.adaptation import build_reference_encoder
from mpcl.engine.metrics import DeviceMetrics
from mpcl.self_training.teacher import EMATeacher
from mpcl.structures import Step, View


def build_hook(cfg) -> AdaptationHook:
    torch.manual_seed(0)
    student = build_model(cfg)
    hook = AdaptationHook.from_config(cfg, student, EMATeacher.from_config(cfg, student))
    hook.trainer = SimpleNamespace(
        iter=0,
        storage=EventStorage(0),
        start_iter=0,
        metrics=DeviceMetrics(),
        autocast=lambda: torch.autocast("cpu", enabled=False),
    )
    hook.before_train()
    return hook


@pytest.fixture
def hook(tiny_cfg):
    # Of the tiny variant, two logits of a pixel may lie nearer than round-off.
    return build_hook(tiny_cfg("daformer", "MODEL.MIT.VARIANT", "b0"))


def make_step(label=None) -> Step:
    label = torch.randint(0, 4, (2, 64, 64)) if label is None else label
    valid = torch.ones(2, 64, 64, dtype=torch.bool)
    return Step(
        0,
        View.of_source(torch.randn(2, 3, 64, 64), label),
        View.of_target(torch.randn(2, 3, 64, 64), torch.ones_like(valid), valid),
    )


def test_target_is_labelled_by_the_teacher_and_mixed_is_pasted_onto_it_then_augmented(hook):
    hook.augment = lambda images: images + 100
    step = make_step()
    given = [view.each(torch.clone) for view in (step.source, step.target)]
    hook.before_forward(step)
    with torch.no_grad():
        logits = hook.teacher.model.score(given[1].images)
    logits = F.interpolate(logits, size=(64, 64), mode="bilinear")
    assert torch.equal(step.target.label, logits.argmax(1))
    assert not step.target.weight.requires_grad
    pasted = step.mixed.from_source
    for label, mask in zip(step.source.label, pasted):  # half of the four classes, as a whole
        classes = set(label[mask].tolist())
        assert len(classes) == 2 and not classes & set(label[~mask].tolist())
    for name in ("label", "weight", "trusted"):
        source, target, mixed = (
            getattr(view, name) for view in (step.source, step.target, step.mixed)
        )
        assert torch.equal(mixed, torch.where(pasted, source, target))
    images = torch.where(pasted[:, None], step.source.images, step.target.images)
    assert torch.equal(step.mixed.images, images + 100)
    assert list(step.images) == ["source", "mixed"]
    # What came from the loader is not written to.
    assert all(torch.equal(v, vars(given[0])[k]) for k, v in vars(step.source).items())
    assert torch.equal(step.target.images, given[1].images)


def test_all_ignored_source_leaves_a_usable_step(hook):
    step = make_step(torch.full((2, 64, 64), 255))
    hook.before_forward(step)
    assert torch.isfinite(step.mixed.images).all()
    assert not (step.mixed.trusted & (step.mixed.label == 255)).any()


def test_teacher_follows_after_the_step(hook):
    start = hook.teacher.model.sem_seg_head.classifier.weight.clone()
    with torch.no_grad():
        hook.student.sem_seg_head.classifier.weight.add_(1.0)
    hook.after_step()
    torch.testing.assert_close(hook.teacher.model.sem_seg_head.classifier.weight, start + 0.5)


def test_masked_view_hides_the_unmixed_target_and_passes_apart(tiny_cfg):
    opts = ("SELF_TRAINING.MASKED.AUGMENT", False, "SELF_TRAINING.CONFIDENCE_THRESHOLD", 0.0)
    hook = build_hook(tiny_cfg("mic_daformer", *opts))
    step = make_step()
    hook.before_forward(step)
    hidden = step.masked.images == 0
    images = (step.target if hook.masking.images == "target" else step.source).images
    assert hidden.any() and torch.equal(step.masked.images[0][~hidden[0]], images[0][~hidden[0]])
    assert "masked" not in step.images
    labelled = step.target
    if hook.masking.images == "pair":
        labelled = step.source.join(step.target, lambda s, t: torch.cat([s[:1], t[:1]]))
    assert torch.equal(step.masked.label, labelled.label)
    assert torch.equal(step.masked.weight, labelled.weight) and labelled.weight.any()


def test_reference_features_see_what_the_students_encoder_sees(tiny_cfg):
    hook = build_hook(tiny_cfg("hrda"))
    hook.reference_encoder = lambda images: {hook.student.deepest_feature: images}
    step = make_step()
    hook.before_forward(step)
    half = F.avg_pool2d(step.source.images, 2)
    torch.testing.assert_close(step.reference_features, half)


class WeightCasts(TorchDispatchMode):
    """The operators that cast weights of a network."""

    def __init__(self, network) -> None:
        super().__init__()
        self.weights = {weight.data_ptr() for weight in network.parameters()}
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if name == "_foreach_copy_" or (name == "_to_copy" and args[0].data_ptr() in self.weights):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("config", ["hrda", "daformer"])
def test_frozen_networks_cast_their_weights_once_and_answer_to_the_same_bit(
    tiny_cfg, monkeypatch, config
):
    monkeypatch.setattr("mpcl.engine.adaptation.load_encoder_", lambda *_: None)
    references = []
    for half in (False, True):
        torch.manual_seed(1)
        cfg = tiny_cfg(config, "SOLVER.AMP.ENABLED", half)
        references.append(build_reference_encoder(cfg))
    hook, step = build_hook(cfg), make_step()
    hook.pseudo_labels = lambda scores, target: (scores, target)
    network = hook.teacher.model
    weights = {name: (w, w.data_ptr(), w.clone()) for name, w in network.named_parameters()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with WeightCasts(network) as each_time:
            expected = network.score(step.target.images)
        with WeightCasts(network) as once:
            found, _ = hook.label(step.target)
        features = []
        for encoder in references:
            with WeightCasts(encoder) as of_reference:
                features.append(encoder(step.source.images)[hook.student.deepest_feature])
    assert torch.equal(found, expected) and torch.equal(*features)
    assert len(each_time.seen) > 20 and once.seen == ["_foreach_copy_"] and not of_reference.seen
    for name, weight in network.named_parameters():  # what EMA and checkpoint see
        same, place, value = weights[name]
        assert weight is same and weight.data_ptr() == place and torch.equal(weight, value), name


def test_teacher_keeps_its_weights_where_labelling_fails_and_casts_none_without_autocast(hook):
    before = {name: w.clone() for name, w in hook.teacher.model.named_parameters()}
    with WeightCasts(hook.teacher.model) as casts:
        hook.label(make_step().target)
    assert not casts.seen
    hook.teacher.model.score = lambda images: 1 / 0
    with pytest.raises(ZeroDivisionError), torch.autocast("cpu", torch.bfloat16):
        hook.label(make_step().target)
    for name, weight in hook.teacher.model.named_parameters():
        assert torch.equal(weight, before[name]) and weight.dtype == torch.float32
