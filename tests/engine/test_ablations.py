"""The table of ablations: every row differs from its config, and every key in it trains a step."""

import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from conftest import SMALLEST

from mpcl.config import get_cfg_from
from mpcl.engine import AdaptationTrainer

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "ABLATIONS.md").read_text()
FOUND = re.findall(r"^\| \S+ \| [^|]+ \| `(\w+)` \| `([^`]+)` \|", TABLE, re.M)
ROWS = [(config, *shlex.split(words)) for config, words in FOUND]  # as a shell reads them
FIRST_OF_KEY = {key: (config, value) for config, key, value in reversed(ROWS)}
ONE_STEP = ["SOLVER.MAX_ITER", 1, "PROTOTYPES.INIT.ITER", 0, "PROTOTYPES.INIT.MIN_SAMPLES", 1]


def test_all_of_the_papers_ablation_tables_are_there():
    tables = set(re.findall(r"^\| ([IVX]+) \|", TABLE, re.M))
    assert tables == {"IV", "VI", "VII", "VIII", "IX", "X", "XI"}
    assert len(ROWS) > 25


def test_every_row_changes_its_config():
    shipped = cache(get_cfg_from)
    for config, key, value in ROWS:
        path = str(ROOT / f"projects/MPCL/configs/{config}.yaml")
        assert get_cfg_from(path, [key, value]) != shipped(path), (config, key, value)


@pytest.mark.parametrize("key", FIRST_OF_KEY)
def test_ablation_trains_a_step(tiny_cfg, key):
    config, value = FIRST_OF_KEY[key]
    small = [*ONE_STEP, *SMALLEST, "VIS_PERIOD", 0, "DATASETS.TEST", ()]
    trainer = AdaptationTrainer(tiny_cfg(config, *small, key, value))
    trainer.train()
    assert trainer.last_step.pixels
