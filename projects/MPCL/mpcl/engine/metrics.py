"""Averages of scalars that stay on their device until someone asks."""

from collections.abc import Mapping

import torch
from torch import Tensor

from ..utils.distributed import sum_over_ranks, world_size


class DeviceMetrics:
    """Running means by name. ``add`` never waits for the device; ``read`` does, once."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        for name, value in scalars.items():
            value = value.detach().float()
            self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """Means over what was added since the last read and over all ranks. Every rank must call
        it."""
        if not self._sums:
            return {}
        means = torch.stack([self._sums[name] / self._counts[name] for name in self._sums])
        names = list(self._sums)
        self._sums, self._counts = {}, {}
        return dict(zip(names, (sum_over_ranks(means) / world_size()).tolist()))
