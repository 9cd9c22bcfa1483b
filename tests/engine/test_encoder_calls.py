"""One encoder call for all views of one size: fewer operations, the same numbers."""

import pytest
import torch

from mpcl.engine import AdaptationTrainer

NO_CHANCE = ["MODEL.SEM_SEG_HEAD.DROPOUT", 0.0, "MODEL.BACKBONE.DROP_PATH", 0.0]
# The bank would round to half precision, and a rounding that falls otherwise is no round-off.
SOON = ["PROTOTYPES.INIT.ITER", 0, "PROTOTYPES.INIT.METHOD", "random", "SOLVER.MAX_ITER", 1]
SOON += ["PROTOTYPES.CLUSTER_POOL", "batch"]
# Prototypes come after the encoder.
METHODS = ["daformer_gauss", "mic_centroid"]


def trained(cfg, one_by_one: bool):
    """A trainer after one step, and the batch size of each call of the student's encoder."""
    torch.manual_seed(0)
    trainer = AdaptationTrainer(cfg)
    trainer.student.encoder_has_batch_norm = one_by_one
    calls = []
    trainer.student.backbone.register_forward_pre_hook(
        lambda module, images: calls.append(len(images[0]))
    )
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer, calls


@pytest.mark.parametrize("method", METHODS)
def test_views_together_equal_views_one_by_one(tiny_cfg, method):
    cfg = tiny_cfg(method, *NO_CHANCE, *SOON, "VIS_PERIOD", 0, "DATASETS.TEST", ())
    alone, calls_alone = trained(cfg, one_by_one=True)
    together, calls_together = trained(cfg, one_by_one=False)
    # Source and mixed images, in HRDA their contexts and details; the masked view is apart.
    scales, masked = (1 if method.startswith("daformer") else 2), method.startswith("mic")
    assert len(calls_alone) == scales * (2 + masked)
    assert calls_together == [2 * scales] * masked + [4 * scales]
    losses = [
        {k: v for k, (v, _) in trainer.storage.latest().items() if k.startswith("loss_")}
        for trainer in (alone, together)
    ]
    assert len(losses[0]) >= 2 and losses[1] == pytest.approx(losses[0], rel=1e-6, abs=1e-9)
    for (name, parameter), other in zip(
        alone.student.named_parameters(), together.student.parameters()
    ):
        gap = (parameter.grad - other.grad).norm()
        assert gap <= 1e-5 * parameter.grad.norm() + 1e-7, name
