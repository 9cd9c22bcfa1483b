"""A batch in parts is the batch, where nothing in the network looks at several images."""

import copy
import math

import pytest
import torch

from mpcl.engine import AdaptationTrainer
from mpcl.modeling import MixTransformer
from mpcl.prototypes.centroid import CentroidPrototypes

# Without batch norm, dropout and stochastic depth each image is alone.
ALONE = ["MODEL.SEM_SEG_HEAD.NORM", "LN", "MODEL.SEM_SEG_HEAD.DROPOUT", "0.0"]
ALONE += ["MODEL.BACKBONE.DROP_PATH", "0.0", "SOLVER.MAX_ITER", "1"]


def train(cfg) -> AdaptationTrainer:
    torch.manual_seed(0)  # of the first weights
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume=False)
    with torch.no_grad():  # away from the features that the feature distance compares with
        for parameter in trainer.student.backbone.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    trainer.train()
    return trainer


@pytest.fixture
def distance(tmp_path) -> list:
    """Options for a feature distance to random features."""
    torch.manual_seed(1)
    weights = {f"backbone.{k}": v for k, v in MixTransformer(variant="b0").state_dict().items()}
    torch.save({"model": weights}, tmp_path / "encoder.pth")
    opts = ["SELF_TRAINING.FEATURE_DISTANCE.WEIGHT", 0.1, "MODEL.WEIGHTS"]
    opts += [str(tmp_path / "encoder.pth"), "SELF_TRAINING.FEATURE_DISTANCE.CLASSES", (2,)]
    return [*opts, "SELF_TRAINING.FEATURE_DISTANCE.MIN_RATIO", 0.5]


@pytest.mark.parametrize("method", ["source_only", "mic_daformer"])
def test_two_parts_add_up_to_the_gradients_of_the_whole_batch(tiny_cfg, method, distance):
    whole = train(tiny_cfg(method, *ALONE, *distance)).student
    parts = train(tiny_cfg(method, *ALONE, *distance, "SOLVER.ACCUMULATE", "2")).student
    for mine, expected in zip(parts.parameters(), whole.parameters()):
        scale = expected.grad.abs().max()
        torch.testing.assert_close(mine.grad / scale, expected.grad / scale, rtol=0, atol=1e-5)


def test_prototypes_are_updated_once_a_step_with_the_pixels_of_all_parts(tiny_cfg, monkeypatch):
    updates = []
    monkeypatch.setattr(
        CentroidPrototypes, "update_", lambda _, embeddings, __: updates.append(embeddings)
    )
    at_once = ["PROTOTYPES.INIT.ITER", 0, "PROTOTYPES.INIT.MIN_SAMPLES", 1]
    for parts in (1, 2):
        train(tiny_cfg("daformer_centroid", *ALONE, *at_once, "SOLVER.ACCUMULATE", parts))
    whole, in_parts = (embeddings[embeddings[:, 0].argsort()] for embeddings in updates)
    torch.testing.assert_close(in_parts, whole, rtol=1e-4, atol=1e-4)


def test_a_step_in_parts_is_skipped_as_a_whole(tiny_cfg):
    trainer = AdaptationTrainer(tiny_cfg("mic_daformer", *ALONE, "SOLVER.ACCUMULATE", "2"))
    label = trainer.criterion._segmentation_loss
    calls = []

    def loss(outputs, view):
        calls.append(view)
        return label(outputs, view) * (math.nan if len(calls) == 2 else 1.0)

    trainer.criterion._segmentation_loss = loss
    before = copy.deepcopy(trainer.student.state_dict())
    trainer.train()
    assert trainer.guard.total == 1
    for name, value in trainer.student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_pictures_show_images_of_one_part(tiny_cfg):
    step = train(tiny_cfg("daformer", *ALONE, "SOLVER.ACCUMULATE", "2")).last_step
    assert len(step.source.images) == len(step.target) == len(step.mixed.images) == 1
    own = ~step.mixed.from_source
    assert torch.equal(step.mixed.label[own], step.pseudo_label.label[own])


def test_images_that_do_not_divide_are_refused(tiny_cfg):
    with pytest.raises(ValueError, match=r"3 images.*2 equal parts.*SOLVER\.ACCUMULATE"):
        train(tiny_cfg("source_only", "SOLVER.IMS_PER_BATCH", 3, "SOLVER.ACCUMULATE", 2))
