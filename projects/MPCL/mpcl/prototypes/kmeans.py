"""K-means of every class at once: where prototypes start.

Legend: B images, C classes, K prototypes a class, D embedding size, N pixels; S points a class, R
restarts.

Points may be in half precision and many (19 x 20,000 x 256): they are converted in chunks, and all
restarts share one pass over them. Runs on the points' device; equal points and seed give equal
results, so replicated banks agree.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from .numerics import (
    chunks_of_points,
    full_float32,
    one_hot,
    squared_distance,
    squared_distance_in_chunks,
)

_ITERATIONS = 20  # of Lloyd's
_RESTARTS = 4
_MIN_POINTS_FOR_VARIANCE = 20
_TWIN_TOLERANCE = 1e-6  # mean squared difference, relative, below which two means count as one
_JITTER = 0.1  # of the class's standard deviation


class KMeans(NamedTuple):
    """What :func:`kmeans` finds.

    Attributes:
        mean: (C, K, D) float32.
        variance: (C, K, D) per channel about the mean; of the whole class's clusters, pooled, where
            points are few.
        count: (C, K) points of each cluster.
        inertia: (C,) sum of squared distances to the nearest mean.
    """

    mean: Tensor
    variance: Tensor
    count: Tensor  # type: ignore[assignment]  # tuple.count, which nobody needs here
    inertia: Tensor


@torch.no_grad()
def kmeans(points: Tensor, valid: Tensor, num_clusters: int, *, seed: int) -> KMeans:
    """K-means++ starts, 20 of Lloyd's iterations, and per class the one of 4 restarts that has the
    least inertia.

    A cluster with fewer than 20 points takes the variance pooled over its class. Means that
    coincide (fewer distinct points than clusters) are jittered: identical prototypes would share
    every pixel evenly and never part. A class without points gets jittered zeros and zero
    variances; nothing is ever NaN.

    Args:
        points: (C, S, D) of any floating type.
        valid: (C, S) bool; other points are never read.
        num_clusters: K.
        seed: of the generator on the points' device.
    Raises: ValueError: ``num_clusters`` is not positive, or the shapes do not match.
    """
    if num_clusters < 1:
        raise ValueError(f"num_clusters is {num_clusters}, expected at least 1")
    if points.dim() != 3 or valid.shape != points.shape[:2] or points.shape[1] == 0:
        raise ValueError(
            f"points has shape {tuple(points.shape)} and valid {tuple(valid.shape)}, "
            "expected (C, S, D) and (C, S) with S > 0"
        )
    generator = torch.Generator(points.device).manual_seed(seed)
    with full_float32(points.device):
        centers = _plus_plus(points, valid, num_clusters, generator)
        for _ in range(_ITERATIONS):
            sums = _cluster_sums(points, valid, centers)
            nonempty = sums.size.unsqueeze(-1) > 0
            centers = torch.where(
                nonempty, sums.first / sums.size.clamp_min(1).unsqueeze(-1), centers
            )
        inertia, best = _cluster_sums(points, valid, centers).inertia.min(1)
        centers = centers[torch.arange(len(best), device=best.device), best].unsqueeze(1)
        sums = _cluster_sums(points, valid, centers, second_moment=True)
    mean, count = centers.squeeze(1), sums.size.squeeze(1)
    variance, pooled = _variances(mean, count, sums.first.squeeze(1), sums.second.squeeze(1))
    return KMeans(_part_twins(mean, pooled, generator), variance, count, inertia)


def random_prototypes(
    num_classes: int,
    num_prototypes: int,
    dim: int,
    *,
    seed: int,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Random start (Algorithm 1, line 2) at unit scale, the same on every device.

    Returns: mean (C, K, D), standard normal, and variance (C, K, D), one.
    """
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(num_classes, num_prototypes, dim, generator=generator).to(device)
    return mean, torch.ones_like(mean)


def _plus_plus(
    points: Tensor, valid: Tensor, num_clusters: int, generator: torch.Generator
) -> Tensor:
    """Centers (C, R, K, D): points drawn in proportion to the distance from those before."""
    num_classes, num_points, _ = points.shape
    classes = torch.arange(num_classes, device=points.device).unsqueeze(1)
    weight = valid.unsqueeze(-1).float().expand(-1, -1, _RESTARTS)
    centers: list[Tensor] = []
    for _ in range(num_clusters):
        # argmax of weight / Exp(1) is a draw with probability ~ weight. The points of weight zero
        # come last of all valid ones, so that fewer distinct points than clusters repeat a valid
        # point.
        clock = torch.empty(num_classes, num_points, _RESTARTS, device=points.device)
        clock.exponential_(generator=generator).clamp_min_(torch.finfo(clock.dtype).tiny)
        score = (weight / clock).masked_fill(~valid.unsqueeze(-1), -1)
        chosen = score.argmax(1)
        center = points[classes, chosen].float()  # (C, R, D)
        center = center.masked_fill(~valid.gather(1, chosen).unsqueeze(-1), 0)  # of empty classes
        distance = squared_distance_in_chunks(points, center)
        weight = torch.minimum(weight, distance) if centers else distance
        centers.append(center)
    return torch.stack(centers, dim=2)


class _ClusterSums(NamedTuple):
    size: Tensor  # (C, R, K)
    first: Tensor  # (C, R, K, D)
    second: Tensor  # (C, R, K, D), zero unless asked for
    inertia: Tensor  # (C, R)


def _cluster_sums(
    points: Tensor, valid: Tensor, centers: Tensor, second_moment: bool = False
) -> _ClusterSums:
    """Assigns points to their nearest centers; size, sum and sum of squares of every cluster."""
    size = torch.zeros_like(centers[..., 0])
    first, second = torch.zeros_like(centers), torch.zeros_like(centers)
    inertia = torch.zeros_like(size[..., 0])
    for part in chunks_of_points(points):
        is_point = valid[:, part, None]
        chunk = points[:, part].float().masked_fill(~is_point, 0)
        distance = squared_distance(chunk, centers.flatten(1, 2))
        least, nearest = distance.view(*chunk.shape[:2], *size.shape[1:]).min(-1)  # (C, s, R)
        inertia += (least.clamp_min(0) * is_point).sum(1)
        member = one_hot(nearest, size.shape[-1]) * is_point.unsqueeze(-1)  # (C, s, R, K)
        size += member.sum(1)
        member = member.flatten(2).mT
        first += (member @ chunk).view_as(first)
        if second_moment:
            second += (member @ chunk.square()).view_as(second)
    return _ClusterSums(size, first, second, inertia)


def _variances(mean: Tensor, count: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Variance (C, K, D) about the means, and the class-pooled one (C, 1, D)."""
    count = count.unsqueeze(-1)
    deviation = (second - 2 * mean * first + count * mean.square()).clamp_min(0)
    pooled = deviation.sum(1, keepdim=True) / count.sum(1, keepdim=True).clamp_min(1)
    enough = count >= _MIN_POINTS_FOR_VARIANCE
    return torch.where(enough, deviation / count.clamp_min(1), pooled), pooled


def _part_twins(mean: Tensor, pooled: Tensor, generator: torch.Generator) -> Tensor:
    """Jitters every mean that coincides with an earlier one of its class."""
    difference = (mean.unsqueeze(2) - mean.unsqueeze(1)).square().mean(-1)  # (C, K, K)
    same = difference <= _TWIN_TOLERANCE * (1 + mean.square().mean(-1, keepdim=True))
    twin = same.tril(-1).any(-1, keepdim=True)
    noise = torch.empty_like(mean).normal_(generator=generator)
    # A class whose points all coincide has no spread: a tenth of the unit scale stands in for it.
    return mean + _JITTER * pooled.sqrt().clamp_min(0.1) * noise * twin
