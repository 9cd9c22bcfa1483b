"""docs/MODEL_ZOO.md lists every config, with the numbers that the config and RESULTS have."""

import re

import pytest
from pages import ROOT

CONFIGS = ROOT / "projects" / "MPCL" / "configs"
FRAGMENTS = {"baselines", "prototypes", "benchmarks", "backbones", "memory"}
ZOO = (ROOT / "docs" / "MODEL_ZOO.md").read_text()
RESULTS = (ROOT / "docs" / "RESULTS.md").read_text()
ROW = re.compile(r"^\| \[`(\S+)`\]\(\.\./projects/MPCL/configs/(\S+)\) \|(.*)\|$", re.M)
ROWS = {name: [cell.strip() for cell in cells.split("|")] for name, _, cells in ROW.findall(ZOO)}
FILES = (path for path in CONFIGS.rglob("*.yaml") if path.parent.name not in FRAGMENTS)
LEAVES = sorted(path.relative_to(CONFIGS).as_posix() for path in FILES)
NUMBER = re.compile(r"\b\d\d\.\d\b")


def test_every_config_is_listed_once_and_every_listed_one_exists():
    assert sorted(name for name, _, _ in ROW.findall(ZOO)) == LEAVES
    assert all(name == link for name, link, _ in ROW.findall(ZOO))


@pytest.mark.parametrize("name", LEAVES)
def test_numbers_are_those_of_the_config(name):
    paper, ours = ROWS[name]
    line = re.search(r"^# Paper: (.*)\. Measured here: (.*)$", (CONFIGS / name).read_text(), re.M)
    assert NUMBER.findall(paper) == NUMBER.findall(line[1]) and (paper == "–") == (
        "no row" in line[1]
    )
    assert NUMBER.findall(ours) == NUMBER.findall(line[2])
    assert (ours == "not measured") == (line[2] == "not measured.")


def test_our_numbers_stand_in_the_results():
    measured = 0
    for name in LEAVES:
        ours = ROWS[name][1]
        if ours != "not measured":
            stem = name.rpartition("/")[2].removesuffix(".yaml")
            rows = re.findall(rf"^\| `{stem}` \| (.*) \|$", RESULTS, re.M)
            assert any(ours.replace(" / ", " | ") in row for row in rows), name
            measured += 1
    assert measured == 10
