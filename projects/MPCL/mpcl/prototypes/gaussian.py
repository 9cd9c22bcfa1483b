"""Gaussian prototypes: K means and diagonal variances per class, similarity by log-likelihood.

Legend: B images, C classes, K prototypes a class, D embedding size, N pixels.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .centroid import CentroidPrototypes
from .numerics import masked_mean


def _quadratic(points: Tensor, linear: Tensor, precision: Tensor) -> Tensor:
    """(..., n, D) points and (..., m, D) coefficients -> (..., n, m): x b - x^2 p / 2."""
    values = points @ linear.mT
    values -= points.square() @ (0.5 * precision).mT
    return values


class _Quadratic(torch.autograd.Function):
    """`_quadratic` with a backward of one pass over the points, which alone receive gradients:
    autograd's own takes four, each over as much as all embeddings."""

    @staticmethod
    def forward(ctx: Any, points: Tensor, linear: Tensor, precision: Tensor) -> Tensor:
        ctx.save_for_backward(points, linear, precision)
        return _quadratic(points, linear, precision)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        points, linear, precision = ctx.saved_tensors
        return (gradient @ linear).addcmul_(points, gradient @ precision, value=-1), None, None


class GaussianPrototypes(CentroidPrototypes):
    r"""K Gaussians with diagonal covariance per class.

    .. math:: \mathrm{sim}(F) = \frac{1}{D} \log \mathcal{N}(F; \mu, \max(\sigma^2, \sigma^2_{min}))

    Adds the buffer variance (C, K, D) float32, stored as estimated: the floor acts in the
    similarity only. It ends the feedback by which a small variance pulls harder and so becomes
    smaller.

    Source: MPCL, Eqs. (7), (9), (21). Ours: diagonal covariance, the mean over channels, the floor,
    and the variance about the *updated* mean: about the batch's own mean the spread between images
    is lost and one pixel gives zero.

    Args:
        num_classes: C.
        num_prototypes: K.
        dim: D.
        momentum: in [0, 1), the weight kept of the old values in `update_`.
        min_variance: floor > 0, for embeddings of unit scale.
        scale: ``"mean"`` over channels, or ``"sum"``, the plain log-likelihood.
    Raises:
        ValueError: an argument is out of its range or an unknown choice.
    """

    variance: Tensor
    _highest_moment = 2

    def __init__(
        self,
        num_classes: int,
        num_prototypes: int,
        dim: int,
        *,
        momentum: float,
        min_variance: float = 0.05,
        scale: str = "mean",
    ):
        super().__init__(num_classes, num_prototypes, dim, momentum=momentum, scale=scale)
        if not min_variance > 0:
            raise ValueError(f"min_variance is {min_variance}, expected a positive number")
        self.min_variance = min_variance
        self.register_buffer("variance", torch.ones_like(self.mean))

    def _moments(self) -> tuple[Tensor, ...]:
        return self.mean, self.variance

    def _compare(self, points: Tensor, mean: Tensor, variance: Tensor) -> Tensor:  # type: ignore[override]
        """log N as a quadratic form: two products and a constant, never an (n, m, D) tensor."""
        variance = variance.clamp_min(self.min_variance)
        precision = 1 / (variance * self.divisor)
        constant = (mean.square() * precision).sum(-1)
        constant = constant + (variance.log() + math.log(2 * math.pi)).sum(-1) / self.divisor
        if torch.is_grad_enabled() and points.requires_grad:
            log_density: Tensor = _Quadratic.apply(points, mean * precision, precision)
        else:
            log_density = _quadratic(points, mean * precision, precision)
        return log_density.sub_(0.5 * constant.unsqueeze(-2))

    @torch.no_grad()
    def start_(self, classes: Tensor, mean: Tensor, variance: Tensor) -> None:
        """As `CentroidPrototypes.start_`, with variances (C, K, D)."""
        super().start_(classes, mean, variance)
        self.variance.copy_(torch.where(classes.view(-1, 1, 1), variance, self.variance))

    def _move_(self, weight: Tensor, first: Tensor, second: Tensor) -> None:  # type: ignore[override]
        super()._move_(weight, first)
        # E[(F - mu)^2] about the mean just moved, from the batch's moments.
        spread = second - 2 * self.mean * first + self.mean.square()
        self.variance.lerp_(spread.clamp_min(0), weight)

    @torch.no_grad()
    def revive_(self, features: Tensor, filled: Tensor, dead_after: int) -> Tensor:
        """As `CentroidPrototypes.revive_`; the variance is pooled over the siblings that stayed."""
        moved = super().revive_(features, filled, dead_after)
        revived = moved.unsqueeze(-1)
        pooled = (self.variance * ~revived).sum(1, keepdim=True)
        pooled = pooled / (~revived).sum(1, keepdim=True).clamp_min(1)
        self.variance.copy_(torch.where(revived, pooled, self.variance))
        return moved

    @torch.no_grad()
    def statistics(self, dead_after: int = 1000) -> dict[str, Tensor]:
        """As `CentroidPrototypes.statistics`, and ``variance``, the mean stored variance of started
        prototypes.
        """
        variance = masked_mean(self.variance.mean((1, 2)), self.started)
        return {**super().statistics(dead_after), "variance": variance}
