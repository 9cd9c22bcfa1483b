"""Centroid prototypes: K means a class, similarity by distance.

Legend: C classes, K prototypes a class, D embedding size, N pixels.
"""

import math
from typing import Any

from torch import Tensor

from .base import Prototypes
from .numerics import squared_distance

DISTANCES = ("squared", "euclidean")
_ROOT_EPS = 1e-8  # the root's derivative is infinite at 0, where a pixel lies on its prototype


class CentroidPrototypes(Prototypes):
    r"""K means a class.

    .. math:: \mathrm{sim}(F) = -\tfrac{1}{D} \lVert F - \mu \rVert^2

    Source: MPCL, Eqs. (5), (8), (20). The squared distance is our reading of (8), ``"euclidean"``
    the printed one; the mean over channels is ours.

    Args:
        distance: ``"squared"`` or ``"euclidean"``; with the latter the scale ``"mean"`` divides by
            the root of D.
        sizes, options: of :class:`Prototypes`.
    Raises: ValueError: an argument is out of its range or an unknown choice.
    """

    epsilon = 0.05

    def __init__(self, *sizes: int, distance: str = "squared", **options: Any):
        super().__init__(*sizes, **options)
        if distance not in DISTANCES:
            raise ValueError(f"distance is {distance!r}, expected one of {DISTANCES}")
        self.distance = distance

    @staticmethod
    def _own_options(proto: Any) -> dict[str, Any]:
        return {"distance": proto.DISTANCE}

    @property
    def unit(self) -> float:
        return super().unit if self.distance == "squared" else math.sqrt(super().unit)

    def _description(self) -> Tensor:
        return self.mean

    def _compare(self, points: Tensor, description: Tensor) -> Tensor:
        distance = squared_distance(points, description) / self.divisor
        if self.distance == "squared":
            return -distance
        return -(distance.clamp_min(0) + _ROOT_EPS).sqrt()

    def _moments(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        return (embeddings,)

    def _move_(self, weight: Tensor, *moments: Tensor) -> None:
        self.mean.lerp_(moments[0], weight)  # (20)
