"""Gaussian prototypes: K means and diagonal variances a class, similarity by log-likelihood.

Legend: C classes, K prototypes a class, D embedding size, N pixels.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .base import Prototypes
from .numerics import masked_mean


class GaussianPrototypes(Prototypes):
    r"""K Gaussians with diagonal covariance a class.

    .. math:: \mathrm{sim}(F) = \frac{1}{D} \log \mathcal{N}(F; \mu, \max(\sigma^2, \sigma^2_{min}))

    Adds the buffer variance (C, K, D) float32, stored as estimated: the floor acts in the
    similarity only. It ends the feedback by which a small variance pulls harder and so becomes
    smaller.

    Source: MPCL, Eqs. (7), (9), (21). Ours: diagonal covariance, the mean over channels, the floor,
    and the variance about the *updated* mean: about the batch's own mean the spread between images
    is lost and one pixel gives zero.

    Args:
        min_variance: floor > 0, for embeddings of unit scale.
        sizes, options: of :class:`Prototypes`.
    Raises: ValueError: an argument is out of its range or an unknown choice.
    """

    epsilon = 0.1

    variance: Tensor

    def __init__(self, *sizes: int, min_variance: float = 0.05, **options: Any):
        super().__init__(*sizes, **options)
        if not min_variance > 0:
            raise ValueError(f"min_variance is {min_variance}, expected a positive number")
        self.min_variance = min_variance
        self.register_buffer("variance", torch.ones_like(self.mean))

    @staticmethod
    def _own_options(proto: Any) -> dict[str, Any]:
        return {"min_variance": proto.MIN_VARIANCE}

    def _description(self) -> Tensor:
        return torch.cat([self.mean, self.variance.clamp_min(self.min_variance)], dim=-1)

    def _compare(self, points: Tensor, description: Tensor) -> Tensor:
        """log N as a quadratic form: two products and a constant, never an (n, m, D) tensor."""
        mean, variance = description.chunk(2, dim=-1)
        precision = 1 / (variance * self.divisor)
        constant = (mean.square() * precision).sum(-1)
        constant = constant + (variance.log() + math.log(2 * math.pi)).sum(-1) / self.divisor
        linear, quadratic = (mean * precision).mT, (0.5 * precision).mT
        return points @ linear - points.square() @ quadratic - 0.5 * constant.unsqueeze(-2)

    @torch.no_grad()
    def start_(self, classes: Tensor, mean: Tensor, variance: Tensor) -> None:
        super().start_(classes, mean, variance)
        self.variance.copy_(torch.where(classes.view(-1, 1, 1), variance, self.variance))

    def _moments(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        return embeddings, embeddings.square()

    def _move_(self, weight: Tensor, *moments: Tensor) -> None:
        first, second = moments
        self.mean.lerp_(first, weight)  # (21), the mean
        # and the variance, E[(F - mu)^2] about the mean just moved, from the batch's moments.
        spread = second - 2 * self.mean * first + self.mean.square()
        self.variance.lerp_(spread.clamp_min(0), weight)

    def _statistics(self, count: Tensor, drift: Tensor) -> dict[str, Tensor]:
        """Adds ``variance``, the mean stored variance of started prototypes."""
        variance = masked_mean(self.variance.mean((1, 2)), self.started)
        return super()._statistics(count, drift) | {"variance": variance}
