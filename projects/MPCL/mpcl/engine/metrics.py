"""Averages of scalars that stay on their device until someone asks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..utils.distributed import sum_over_ranks


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
