"""Scalars of a run: averages that stay on their device until someone asks, and metrics.json."""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..utils.atomic_write import write_atomically
from ..utils.distributed import sum_over_ranks

logger = logging.getLogger(__name__)


class DeviceMetrics:
    """Means by name, over the finite values. ``add`` never waits for the device; ``read`` does,
    once.

    A value that is infinite or NaN counts as absent: one skipped step does not spoil a log line.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, ...], Tensor] = {}  # names -> (2, n): sums and counts

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        if not scalars:
            return
        names = tuple(scalars)
        values = torch.stack([value.detach().float() for value in scalars.values()])
        finite = values.isfinite()
        update = torch.stack([torch.where(finite, values, 0.0), finite.float()])
        self._sums[names] = self._sums[names] + update if names in self._sums else update

    def read(self) -> dict[str, float]:
        """Means over what was added since the last read and over all ranks, without the names that
        had no finite value. Every rank must call it."""
        if not self._sums:
            return {}
        sums, counts = sum_over_ranks(torch.cat(list(self._sums.values()), dim=1)).tolist()
        names = [name for group in self._sums for name in group]
        self._sums = {}
        totals: dict[str, tuple[float, float]] = {}
        for name, value, count in zip(names, sums, counts):
            before = totals.get(name, (0.0, 0.0))
            totals[name] = before[0] + value, before[1] + count
        return {name: value / count for name, (value, count) in totals.items() if count}


def start_metrics(path: Path, start_iter: int) -> None:
    """Makes metrics.json fit a run that starts at ``start_iter``: at most one line an iteration.

    Lines of that iteration and later ones, which the run will write again, are dropped, and so is a
    line that a kill has cut off. A run from iteration 0 puts an earlier run's lines aside, as
    ``metrics.old.json``.
    """
    if not path.is_file():
        return
    if start_iter == 0:
        os.replace(path, path.with_name("metrics.old.json"))
        return
    kept = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        try:
            iteration = json.loads(line)["iteration"]
        except (json.JSONDecodeError, TypeError, KeyError):
            continue
        if iteration < start_iter:
            kept.append(line)
    if len(kept) < len(lines):
        logger.info(f"{path}: dropped {len(lines) - len(kept)} lines from iteration {start_iter}")
        write_atomically(path, "".join(line + "\n" for line in kept).encode())
