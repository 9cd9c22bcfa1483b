"""Files of any content: each is read, or refused by name in one message; none ends in a traceback.

The files are whole in their format (what unpickles, parses or unzips) and odd in what they hold.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from mpcl.checkpoint.foreign import convert_checkpoint
from mpcl.checkpoint.weights import WeightsCheckpointer
from mpcl.evaluation.runs import read_experiments
from mpcl.evaluation.tables import compare, report
from mpcl.visualization.report.contents import read_contents
from mpcl.visualization.report.page import render

FEW = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, float("nan"), -0.0])
PLAIN = st.none() | st.booleans() | NUMBERS | st.text(max_size=5)


def nested(leaves: st.SearchStrategy, keys: st.SearchStrategy) -> st.SearchStrategy:
    return st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=8,
    )


NAMES = st.sampled_from(
    [
        "model",
        "state_dict",
        "teacher",
        "iteration",
        "matching_heuristics",
        "__author__",
        "backbone.weight",
    ]
)
TENSORS = st.sampled_from(
    [torch.zeros(1), torch.zeros(2, 2), torch.zeros(0), torch.zeros(1, dtype=torch.int64)]
)
WEIGHTS = nested(PLAIN | TENSORS, NAMES | st.integers() | st.none() | st.text(max_size=3))


@FEW
@given(content=WEIGHTS)
@example({"model": [torch.zeros(1)]})
@example(torch.zeros(1))
@example(None)
@example({0: torch.zeros(1)})
@example({"state_dict": 5})
@example({"model": {"weight": 5}, "matching_heuristics": True})
def test_a_weight_file_of_any_content_is_loaded_or_refused_by_name(tmp_path, content):
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    model = nn.Module()
    model.backbone = nn.Linear(2, 2)
    for use in (
        lambda: WeightsCheckpointer(model).load(str(path), checkpointables=[]),
        lambda: convert_checkpoint(path, tmp_path / "converted.pth"),
    ):
        try:
            use()
        except ValueError as error:
            assert "odd.pth" in str(error)
            assert len(str(error)) < 2000


CONFIG = {
    "SEED": 0,
    "OUTPUT_DIR": "x",
    "SOLVER": {"MAX_ITER": 40},
    "MODEL": {"DEVICE": "cpu"},
    "TEST": {"CLASS_SUBSETS": [["few", [0]]]},
    "DATASETS": {"TEST": ["a_val"]},
}
ROW = {"iteration": 40, "sem_seg/mIoU": 50.0, "sem_seg_student/mIoU": 40.0, "loss": 1.0, "time": 1}
SESSION = {
    "started": "today",
    "command": ["a"],
    "config_file": "b",
    "changed": {"SEED": [0, 1]},
    "git": {"commit": "c", "branch": "d", "changed_files": 0},
    "versions": {"torch": "2"},
    "device": "cpu",
    "processes": 1,
}
FILES = {
    "config.yaml": CONFIG,
    "metrics.json": ROW,
    "run.json": {"sessions": [SESSION]},
    "inference/a_val/confusion_teacher.json": {
        "classes": ["a", "b"],
        "matrix": [[1, 0], [0, 1]],
        "seconds": 1.0,
    },
}


@st.composite
def changed(draw: st.DrawFn) -> tuple[str, object]:
    """A file of a run in which something, at any depth, is something else."""
    name = draw(st.sampled_from(list(FILES)))
    content = json.loads(json.dumps(FILES[name]))
    holder, key = {"": content}, ""
    root = holder
    while isinstance(holder[key], (dict, list)) and holder[key] and draw(st.booleans()):
        holder = holder[key]
        keys = list(holder) if isinstance(holder, dict) else range(len(holder))
        key = draw(st.sampled_from(keys))
    odd = nested(PLAIN, st.text(max_size=3) | st.sampled_from(["sessions", "iteration"]))
    holder[key] = draw(odd)
    return name, root[""]


@FEW
@given(change=changed())
@example(("metrics.json", {**ROW, "loss": float("nan"), "sem_seg/mIoU": float("nan")}))
@example(("metrics.json", 5))
@example(("run.json", {"sessions": [5]}))
@example(("config.yaml", [5]))
@example(("config.yaml", {**CONFIG, "MODEL": None}))
@example(("config.yaml", {**CONFIG, 5: 6}))
@example(("config.yaml", {**CONFIG, "DATASETS": {"TEST": []}}))
@example(("config.yaml", {**CONFIG, "SOLVER": {"MAX_ITER": 10**400}}))
@example(("config.yaml", {**CONFIG, "SOLVER": {"MAX_ITER": -1}}))
@example(("config.yaml", {**CONFIG, "TEST": {"CLASS_SUBSETS": [["few", [{}]]]}}))
@example(("run.json", {"sessions": [{**SESSION, "command": []}]}))
@example(("run.json", {"sessions": [{**SESSION, "changed": []}]}))
@example(("run.json", {"sessions": [{**SESSION, "changed": {"": [None, {}]}, "git": None}]}))
@example(("metrics.json", {**ROW, "/sem_seg/mIoU": 1.0, "iteration": 10**300}))
def test_a_run_with_any_content_is_shown_or_refused_by_name(tmp_path, change):
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "inference/a_val").mkdir(parents=True)
    for name, content in {**FILES, change[0]: change[1]}.items():
        text = yaml.safe_dump(content) if name.endswith("yaml") else json.dumps(content)
        (folder / name).write_text(text)
    for show in (_report, _compare):
        try:
            json.dumps(show(folder), allow_nan=False)
        except ValueError as error:
            assert str(folder) in str(error), error
            assert len(str(error)) < 3000


def _report(folder: Path) -> object:
    return render(read_contents([folder]))


def _compare(folder: Path) -> object:
    experiments = read_experiments([folder])
    return report(experiments, compare(experiments))


@pytest.mark.parametrize("content", ["[" * 100_000, "9" * 100_000, '"\\ud800"', "NaN"])
def test_json_of_any_kind_is_refused_by_name(tmp_path, content):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "run.json").write_text(content)
    with pytest.raises(ValueError, match=r"run\.json"):
        read_contents([folder])
