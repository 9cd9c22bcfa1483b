"""What the output folder of a run holds, read for the report."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ...config import default_config
from ...evaluation.evaluator import class_scores
from ...evaluation.run_record import Confusion, read_confusions, read_sessions
from ...evaluation.runs import Run, differences, read_run, shortest_names

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunContents(Run):
    """A run, with everything that the report shows of it.

    Attributes:
        name: tells it apart from the others of the report.
        sessions: processes that trained it, see :mod:`mpcl.evaluation.run_record`.
        confusions: of the evaluation whose scores are :attr:`latest`.
    """

    name: str
    sessions: list[dict[str, Any]]
    confusions: list[Confusion]

    @property
    def iterations(self) -> int:
        return int(max((row["iteration"] for row in self.rows), default=-1)) + 1

    def score(self, dataset: str, network: str, metric: str) -> float | None:
        """One of :attr:`latest`, in percent."""
        return self.latest.get(dataset, {}).get(network, {}).get(metric)

    @property
    def seconds_per_iteration(self) -> float | None:
        """The mean over the run, weighted by the iterations between two lines."""
        return self.training_seconds / done if (done := self._timed()[1]) else None

    @property
    def training_seconds(self) -> float:
        """The time spent in iterations, without evaluations and checkpoints, over all sessions."""
        return self._timed()[0]

    @property
    def peak_memory(self) -> tuple[float, str] | None:
        """The peak in MiB, and whether it is the GPU's or the process's."""
        for key, where in (("gpu/max_mem_MiB", "GPU"), ("[metric] max_mem_MiB", "process")):
            values = [row[key] for row in self.rows if key in row]
            if values:
                return max(values), where
        return None

    def _timed(self) -> tuple[float, int]:
        seconds, done, before = 0.0, 0, -1
        for row in self.rows:
            iteration = int(row["iteration"])
            if "time" in row and iteration < self.max_iter:
                seconds += row["time"] * (iteration - before)
                done += iteration - before
                before = iteration
        return seconds, done

    def not_default(self) -> dict[str, tuple[Any, Any]]:
        """Keys that are not at the package's default, with default and value."""
        known = yaml.safe_load(default_config().dump())
        known["MODEL"].pop("DEVICE")  # its default is the machine's
        ours = {**self.config, "MODEL": {**self.config["MODEL"]}}
        ours["MODEL"].pop("DEVICE", None)
        return {k: pair for k, pair in differences(known, ours).items() if pair[1] is not None}


def read_contents(folders: Sequence[Path]) -> list[RunContents]:
    """Each folder is one run.

    Raises: ValueError: a folder holds no run, or a file of it is damaged.
    """
    names = shortest_names(folders)
    return [_read(folder, name) for folder, name in zip(folders, names)]


def _read(folder: Path, name: str) -> RunContents:
    run = read_run(folder)
    more = name, read_sessions(folder), read_confusions(folder)
    contents = RunContents(run.folder, run.config, run.rows, *more)
    return replace(contents, confusions=[c for c in contents.confusions if _is_of(contents, c)])


def _is_of(run: RunContents, confusion: Confusion) -> bool:
    """Whether a matrix is of the run's last scores: an ``--eval-only`` of other weights or settings
    leaves its own in the same folder."""
    score = run.score(confusion.dataset, confusion.network, "mDice")
    own = class_scores(np.array(confusion.matrix), confusion.classes)["mDice"]
    if score is not None and math.isclose(own, score, abs_tol=1e-3):
        return True
    logger.warning(
        f"{run.folder}: the confusion matrix of {confusion.dataset}, {confusion.network}, is not "
        "of the scores in metrics.json, but of a later --eval-only; left out"
    )
    return False
