"""metrics.json of a run that stops and goes on: every iteration has its line once."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

from detectron2.engine import hooks
from detectron2.utils.events import EventStorage, EventWriter

from ..utils.atomic_write import write_atomically

logger = logging.getLogger(__name__)


def start_metrics(path: Path, start_iter: int) -> bool:
    """Makes metrics.json fit a run that starts at ``start_iter``.

    Lines of that iteration and later ones, which the run will write again, are dropped, and so is a
    line that a kill has cut off. A run from iteration 0 puts an earlier run's lines aside, as
    ``metrics.old.json``.

    Returns: whether the line of the iteration before ``start_iter`` is there.
    """
    if not path.is_file():
        return False
    if start_iter == 0:
        os.replace(path, path.with_name("metrics.old.json"))
        return False
    kept, last = [], -1
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        try:
            iteration = json.loads(line)["iteration"]
        except (json.JSONDecodeError, TypeError, KeyError):
            continue
        if iteration < start_iter:
            kept.append(line)
            last = max(last, iteration)
    if len(kept) < len(lines):
        logger.info(f"{path}: dropped {len(lines) - len(kept)} lines from iteration {start_iter}")
        write_atomically(path, "".join(line + "\n" for line in kept).encode())
    return last == start_iter - 1


class MetricsWriter(hooks.PeriodicWriter):
    """detectron2's writer hook, which opens its files when training begins and, when training
    breaks off, closes them without the line of an unfinished iteration."""

    def __init__(self, build_writers: Callable[[], list[EventWriter]], period: int) -> None:
        super().__init__([], period)
        self._build_writers = build_writers

    def before_train(self) -> None:
        self._writers = self._build_writers()

    def after_train(self) -> None:
        if self.trainer.finished:
            super().after_train()
        else:
            for writer in self._writers:
                writer.close()


class Evaluation(hooks.EvalHook):
    """detectron2's evaluation hook, but the final evaluation is that of a finished run only."""

    def after_train(self) -> None:
        if self.trainer.finished:
            super().after_train()


Unwritten = dict[str, list[float | int]]
"""Name -> value, iteration, of scalars that are in no line yet."""


def unwritten_scalars(storage: EventStorage, iteration: int, period: int) -> Unwritten:
    """What the next line will hold, seen after the step of ``iteration`` and before its line.

    Smoothed scalars, wall-clock times, are left out: they belong to a process, not to the run.

    Args:
        period: iterations between two lines.
    """
    first = iteration // period * period  # the iterations before it have had their line
    smoothed = storage.smoothing_hints()
    return {
        name: [value, when]
        for name, (value, when) in storage.latest().items()
        if when >= first and not smoothed[name]
    }


def put_back(storage: EventStorage, scalars: Unwritten) -> None:
    """The inverse of :func:`unwritten_scalars`."""
    for name, (value, when) in scalars.items():
        storage.put_scalar(name, value, smoothing_hint=False, cur_iter=int(when))
