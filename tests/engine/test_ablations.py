"""The table of ablations: every row trains a step and differs from its config."""

import re
from pathlib import Path

import pytest

from mpcl.config import get_cfg_from
from mpcl.engine import AdaptationTrainer

TABLE = (Path(__file__).parents[2] / "docs" / "ABLATIONS.md").read_text()
CONFIGS = Path(__file__).parents[2] / "projects" / "MPCL" / "configs"
ROW = re.compile(r"^\| \S+ \| (?P<what>[^|]+) \| `(?P<config>\w+)` \| `(?P<keys>[^`]+)` \|", re.M)
ROWS = [(row["config"], row["keys"], row["what"]) for row in ROW.finditer(TABLE)]
ONE_STEP = ["SOLVER.MAX_ITER", 1, "PROTOTYPES.INIT.ITER", 0, "PROTOTYPES.INIT.MIN_SAMPLES", 1]


def test_all_of_the_papers_ablation_tables_are_there():
    assert set(re.findall(r"^\| ([IVX]+) \|", TABLE, re.M)) == {
        "IV",
        "VI",
        "VII",
        "VIII",
        "IX",
        "X",
        "XI",
    }
    assert len(ROWS) > 25


@pytest.mark.parametrize(("config", "keys", "what"), ROWS, ids=[row[1] for row in ROWS])
def test_ablation_trains_a_step(tiny_cfg, config, keys, what):
    key, value = keys.split()
    small = [*ONE_STEP, "VIS_PERIOD", 0, "DATASETS.TEST", ()]
    shipped = get_cfg_from(str(CONFIGS / f"{config}.yaml"))
    changed = get_cfg_from(str(CONFIGS / f"{config}.yaml"), [key, value])
    assert changed.dump() != shipped.dump()
    cfg = tiny_cfg(config, *small, key, value)
    trainer = AdaptationTrainer(cfg)
    trainer.train()
    assert trainer.last_step.pixels
