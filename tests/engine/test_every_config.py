"""Every method, with every kind of prototypes, trains a step and evaluates, at reduced size; some
are trained for longer in test_trainer.py."""

import pytest
import torch
from conftest import SMALLEST

from mpcl.engine import AdaptationTrainer

# Blocks of 16 pixels hide a detail crop of 32x32 whole at times: in a Mix Transformer, which has no
# biases there, all is zero then, and layer norms make that gradient overflow.
ONE_STEP = ["SELF_TRAINING.MASKED.BLOCK_SIZE", 8, "SOLVER.MAX_ITER", 1, "VIS_PERIOD", 0]
ONE_STEP += ["PROTOTYPES.INIT.ITER", 0, "PROTOTYPES.INIT.MIN_SAMPLES", 1]


@pytest.mark.parametrize(
    "name",
    [
        *("daformer", "daformer_gauss", "hrda", "hrda_centroid", "hrda_gauss"),
        *("mic", "mic_centroid", "mic_gauss"),
        *("mic_daformer", "mic_gauss_dinov2", "acdc/mic_gauss"),  # pairs of masked images
    ],
)
def test_config_trains_a_step_and_evaluates(tiny_cfg, name):
    encoder = () if name == "mic_gauss" else SMALLEST  # the others differ in other things
    trainer = AdaptationTrainer(tiny_cfg(name, *ONE_STEP, *encoder))
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert 0 <= trainer._last_eval_results["sem_seg"]["mIoU"] <= 100
    head = trainer.student.prototype_head
    assert (head is not None) == ("_centroid" in name or "_gauss" in name)
    if head is not None:
        assert head.prototypes.started.any() and trainer.last_step.pixels
    gradients = [p.grad for p in trainer.student.parameters() if p.requires_grad]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
