"""Output folders of training, read back: settings, and the scores of the final evaluation."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from ..config.reading import get, leaves
from ..data.sets.classes import read_classes
from ..utils.foreign_files import read_text, read_yaml
from ..utils.messages import short
from .evaluator import mean_metrics

CONFIG = "config.yaml"
NETWORKS = ("teacher", "student")

Scores = dict[str, dict[str, dict[str, float]]]
"""Data set -> "teacher" or "student" -> metric -> percent."""

_SCORE = re.compile(r"(?:(?P<dataset>.+?)/)?(?P<task>sem_seg(?:_student)?)/(?P<metric>.+)")


def scores_by_dataset(flat: Mapping[str, float], test_sets: Sequence[str]) -> Scores:
    """Sorts flattened results, those of one set and those of several, which name their set.

    Args:
        flat: ``sem_seg/mIoU`` or ``<set>/sem_seg_student/mIoU``; other keys are left aside.
        test_sets: DATASETS.TEST; keys without a name belong to the first, and are left aside where
            there is none.
    Returns: the test sets first, in their order.
    """
    has_teacher = any("sem_seg_student/" in key for key in flat)
    scores: Scores = {}
    for key, value in flat.items():
        match = _SCORE.fullmatch(key)
        if match is None or not (match["dataset"] or test_sets):
            continue
        network = "teacher" if has_teacher and match["task"] == "sem_seg" else "student"
        of_set = scores.setdefault(match["dataset"] or test_sets[0], {})
        of_set.setdefault(network, {})[match["metric"]] = value
    first = [name for name in test_sets if name in scores]
    return {name: scores[name] for name in dict.fromkeys([*first, *scores])}


@dataclass(frozen=True)
class Run:
    """One run of one seed.

    Attributes:
        config: its config.yaml.
        rows: the lines of its metrics.json, by iteration.
    """

    folder: Path
    config: dict[str, Any]
    rows: list[dict[str, float]]

    @property
    def seed(self) -> int:
        return self.config["SEED"]

    @property
    def metrics(self) -> list[str]:
        """Names of the means that its evaluations report, the headline first."""
        return mean_metrics(self.config["TEST"].get("CLASS_SUBSETS") or ())

    @property
    def max_iter(self) -> int:
        return self.config["SOLVER"]["MAX_ITER"]

    @property
    def iteration(self) -> int:
        """The last one that metrics.json knows; 0 before the first."""
        return int(self.rows[-1]["iteration"]) if self.rows else 0

    @cached_property
    def evaluations(self) -> list[tuple[int, Scores]]:
        """(iteration, scores) of each evaluation, in order."""
        sets = self.config["DATASETS"]["TEST"]
        found = [(int(row["iteration"]), scores_by_dataset(row, sets)) for row in self.rows]
        return [(iteration, scores) for iteration, scores in found if scores]

    @property
    def latest(self) -> Scores:
        """The scores of the last evaluation so far; empty before the first."""
        return self.evaluations[-1][1] if self.evaluations else {}

    @property
    def classes(self) -> list[str]:
        """Names in the order of the network's outputs; none where the run has not kept them."""
        kept = read_classes(self.folder)
        return list(kept.stuff_classes) if kept else []

    @property
    def scores(self) -> Scores | None:
        """Of the evaluation after the last iteration; None if the run has not come to it."""
        # That evaluation counts one further than the last iteration.
        iteration, scores = self.evaluations[-1] if self.evaluations else (-1, None)
        return scores if iteration >= self.max_iter else None


@dataclass(frozen=True)
class Experiment:
    """Runs that should differ in their seed alone, by ascending seed."""

    name: str
    runs: tuple[Run, ...]

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.scores is not None]


def scored_classes(runs: Sequence[Run], dataset: str) -> list[str]:
    """The classes that runs were last scored on, in the order of the data set where it is
    registered, else in that of the runs."""
    networks = [network for run in runs for network in run.latest.get(dataset, {}).values()]
    metrics = [metric for network in networks for metric in network]
    seen = [metric.removeprefix("IoU-") for metric in metrics if metric.startswith("IoU-")]
    if dataset in MetadataCatalog:
        known = MetadataCatalog.get(dataset).get("stuff_classes", ())
    else:
        known = [name for run in runs for name in run.classes]
    return list(dict.fromkeys([*(name for name in known if name in seen), *seen]))


def config_file_of(folder: Path) -> Path:
    """Raises ValueError: the folder holds no run."""
    if not (file := folder / CONFIG).exists():
        raise ValueError(f"{folder} is no output folder of train_net.py: it has no {CONFIG}")
    return file


def read_run(folder: Path) -> Run:
    """Reads ``config.yaml`` and ``metrics.json``.

    Raises: ValueError: the folder holds no run.
    """
    config_file = config_file_of(folder)
    config = read_yaml(config_file)
    _check_config(config, config_file)
    rows = metrics_rows(folder / "metrics.json")
    return Run(folder, config, sorted(rows, key=lambda row: row["iteration"]))


def metrics_rows(file: Path) -> list[dict[str, float]]:
    """Lines of metrics.json; one that was cut off by a kill is left out, and so is a metric that
    is no finite number.

    Raises: ValueError: a line is something else.
    """
    rows = []
    for number, line in enumerate(read_text(file).splitlines() if file.exists() else (), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if not isinstance(row, dict) or not is_number(row.get("iteration")):
            raise ValueError(
                f"{file}, line {number}: {short(row)}; expected metrics by name, iteration among "
                "them, as train_net.py writes them"
            )
        rows.append({key: value for key, value in row.items() if is_number(value)})
    return rows


def is_number(value: object) -> bool:
    """Whether it is a finite one."""
    # Of a whole number beyond the floats isfinite knows nothing.
    plain = isinstance(value, (int, float)) and not isinstance(value, bool)
    return plain and abs(value) <= sys.float_info.max  # type: ignore[arg-type]


def _check_config(config: Any, file: Path) -> None:
    """Raises ValueError unless what this module reads of a run's config is there."""
    expected = {
        "SEED": int,
        "SOLVER.MAX_ITER": int,
        "DATASETS.TEST": (list, tuple),
        "TEST": dict,
        "MODEL": dict,
    }
    for key, kind in expected.items():
        if not isinstance(value := setting(config, key), kind):
            raise ValueError(f"{file} is no config of train_net.py: {key} is {short(value)}")
    names, subsets = config["DATASETS"]["TEST"], config["TEST"].get("CLASS_SUBSETS") or ()
    pairs = isinstance(subsets, (list, tuple)) and all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
        for pair in subsets
    )
    if not pairs or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"{file} is no config of train_net.py: DATASETS.TEST is {short(names)}, "
            f"TEST.CLASS_SUBSETS is {short(subsets)}"
        )


def read_experiment(folder: Path) -> Experiment:
    """A run, or the runs in the folder's sub-folders (``seed_0``, ...).

    Raises: ValueError: there is no run, or there are two of one seed, or a run has others below it.
    """
    folders = _runs_in(folder, ("", "*/"))
    runs = sorted((read_run(path) for path in folders), key=lambda run: run.seed)
    for one, other in pairwise(runs):
        if one.seed == other.seed:
            raise ValueError(
                f"{one.folder} and {other.folder} have the same SEED {one.seed}; expected "
                "sub-folders that differ in their seed alone"
            )
    return Experiment(folder.name or str(folder), tuple(runs))


def read_experiments(folders: Sequence[Path]) -> list[Experiment]:
    """:func:`read_experiment` of each; folders of one name are called by their paths."""
    found = [read_experiment(folder) for folder in folders]
    names = [experiment.name for experiment in found]
    return [
        replace(experiment, name=str(folder)) if names.count(experiment.name) > 1 else experiment
        for folder, experiment in zip(folders, found)
    ]


def find_runs(folders: Sequence[Path]) -> list[Path]:
    """The runs in folders: each folder itself, or else its sub-folders, or theirs.

    Raises: ValueError: a folder holds no run, or is one and holds others.
    """
    return [run for folder in folders for run in _runs_in(folder, ("", "*/", "*/*/"))]


def _runs_in(folder: Path, levels: Sequence[str]) -> list[Path]:
    """The runs of the highest of some levels that has any.

    Raises: ValueError: none has; or the folder is a run, and others lie in it: which is meant?
    """
    found = [sorted(file.parent for file in folder.glob(f"{up}config.yaml")) for up in levels]
    if not any(found):
        raise ValueError(
            f"{folder} holds no run of train_net.py: expected config.yaml, in it or below it"
        )
    if found[0] and any(found[1:]):
        below = next(filter(None, found[1:]))
        raise ValueError(
            f"{folder} is a run, and holds others, such as {below[0]}: name the runs themselves, "
            "or move one of them"
        )
    return next(filter(None, found))


def shortest_names(folders: Sequence[Path]) -> list[str]:
    """As many last parts of the paths as tell them apart: "seed_0", or "daformer/seed_0".

    Raises: ValueError: a folder is named twice.
    """
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise ValueError("a run is named twice: " + ", ".join(map(str, folders)))
    lengths = range(1, max(len(path.parts) for path in paths) + 1)
    candidates = (["/".join(path.parts[-length:]) for path in paths] for length in lengths)
    return next(names for names in candidates if len(set(names)) == len(names))


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which two configs differ, with both values; SEED and OUTPUT_DIR may."""
    keys = dict.fromkeys([*leaves(one), *leaves(other)])
    pairs = {key: (setting(one, key), setting(other, key)) for key in keys}
    free = ("SEED", "OUTPUT_DIR")
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b and key not in free}


def setting(config: Any, key: str) -> Any:
    """The value of a dotted key; None where there is none."""
    try:
        return get(config, key)
    except (KeyError, TypeError):
        return None
