"""Every shipped config trains one step, with prototypes, and evaluates, at reduced size."""

from pathlib import Path

import pytest
import torch

from mpcl.engine import AdaptationTrainer

CONFIGS = Path(__file__).parents[2] / "projects" / "MPCL" / "configs"
FRAGMENTS = {"baselines", "prototypes", "benchmarks", "backbones", "memory"}
LEAVES = sorted(
    str(path.relative_to(CONFIGS).with_suffix(""))
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name not in FRAGMENTS
)
ONE_STEP = ["SOLVER.MAX_ITER", 1, "PROTOTYPES.INIT.ITER", 0, "PROTOTYPES.INIT.MIN_SAMPLES", 1]


@pytest.mark.parametrize("name", LEAVES)
def test_config_trains_a_step_and_evaluates(tiny_cfg, name):
    trainer = AdaptationTrainer(tiny_cfg(name, *ONE_STEP, "VIS_PERIOD", 0))
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert 0 <= trainer._last_eval_results["sem_seg"]["mIoU"] <= 100
    head = trainer.student.prototype_head
    assert (head is not None) == ("_centroid" in name or "_gauss" in name)
    if head is not None:
        assert head.prototypes.started.any() and trainer.last_step.pixels
    gradients = [p.grad for p in trainer.student.parameters() if p.requires_grad]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
