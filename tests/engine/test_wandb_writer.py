"""Weights & Biases, with a stand-in for the package."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
from conftest import SMALLEST

from mpcl.config.preflight import preflight
from mpcl.engine import AdaptationTrainer


@pytest.fixture
def wandb(monkeypatch):
    """A module that keeps what it was asked to send."""
    module = ModuleType("wandb")
    module.__spec__ = SimpleNamespace()  # what find_spec looks at
    module.runs = []

    def init(**settings):
        run = SimpleNamespace(id=settings["id"] or f"id{len(module.runs)}", rows=[], ended=False)
        run.settings = settings
        run.log = lambda row, step: run.rows.append((step, row))
        run.finish = lambda: setattr(run, "ended", True)
        module.runs.append(run)
        return run

    module.init, module.Image = init, lambda picture: picture.shape
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def train(cfg, resume=False):
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()


def test_one_key_sends_scalars_and_pictures_and_a_resumed_run_goes_on(wandb, tiny_cfg):
    keys = ("source_only", *SMALLEST, "WANDB.PROJECT", "streets", "DATASETS.TEST", ())
    keys = (*keys, "VIS_PERIOD", 2, "SOLVER.MAX_ITER")
    train(tiny_cfg(*keys, 2))
    train(tiny_cfg(*keys, 4), resume=True)
    train(tiny_cfg(*keys, 2))
    first, second, anew = wandb.runs
    assert first.settings["project"] == "streets" and first.ended
    assert first.settings["config"]["SOLVER"]["MAX_ITER"] == 2
    steps = [step for step, _ in first.rows]
    assert steps == sorted(set(steps)) and steps[:2] == [0, 1]
    assert {"loss_sem_seg", "lr"} <= first.rows[0][1].keys()
    assert any(row.get("training step", ())[2:] == (3,) for _, row in first.rows)
    assert second.settings["id"] == first.id and min(step for step, _ in second.rows) >= 2
    assert anew.settings["id"] is None  # iteration 0 again: another run


def test_preflight_names_the_package_where_it_is_missing(wandb, tiny_cfg, monkeypatch):
    options = ("WANDB.PROJECT", "streets", "MODEL.TIMM.NAME", "")
    assert preflight(tiny_cfg("daformer", *options)) == []
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match="pip install wandb"):
        preflight(tiny_cfg("daformer", *options))
    assert preflight(tiny_cfg("daformer", "MODEL.TIMM.NAME", "")) == []
