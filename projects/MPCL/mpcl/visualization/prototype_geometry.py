"""Distances and shares of prototypes. Pure: torch.

C classes, K prototypes a class, D embedding size, N pixels. A distance is the root mean square over
the channels: 1 = one unit in every channel.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


def drift(before: Tensor, after: Tensor) -> Tensor:
    """(C, K) how far each prototype (C, K, D) has moved."""
    return (after - before).square().mean(-1).sqrt()


def pairwise_distance(mean: Tensor) -> Tensor:
    """(C*K, C*K) distances between all prototypes (C, K, D); float64, 0 on the diagonal."""
    points = mean.flatten(0, 1).double()
    distance = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    return distance / math.sqrt(mean.shape[-1])


class Neighbours(NamedTuple):
    """Distances (C, K), infinite where there is no neighbour; ``other_class`` (C, K) int64."""

    sibling: Tensor
    other: Tensor
    other_class: Tensor


def nearest_neighbours(distance: Tensor, num_prototypes: int, started: Tensor) -> Neighbours:
    """The nearest prototype of the same class, and of any other.

    Args:
        distance: see :func:`pairwise_distance`.
        started: (C,) bool; the others are nobody's neighbour.
    """
    owner = torch.arange(len(started)).repeat_interleave(num_prototypes)
    same = owner.unsqueeze(0) == owner.unsqueeze(1)
    itself = torch.eye(len(owner), dtype=torch.bool)
    absent = ~started[owner].unsqueeze(0)
    sibling = distance.masked_fill(~same | itself | absent, torch.inf).amin(1)
    other, index = distance.masked_fill(same | absent, torch.inf).min(1)
    shape = (len(started), num_prototypes)
    return Neighbours(sibling.view(shape), other.view(shape), owner[index].view(shape))


def usage_share(count: Tensor) -> Tensor:
    """(C, K) pixels -> share within each class; 0 for a class without pixels."""
    return count / count.sum(1, keepdim=True).clamp_min(1)


class Assigned(NamedTuple):
    """Labelled pixels and their nearest prototype of the own class.

    Attributes:
        pixel: (M,) int64 index of the pixel.
        cluster: (M,) int64 in [0, C*K).
        similarity: (M,) float32 to that prototype.
    """

    pixel: Tensor
    cluster: Tensor
    similarity: Tensor


def assign_to_own_class(similarity: Tensor, label: Tensor, started: Tensor) -> Assigned:
    """The most similar prototype of each pixel's class; pixels of other classes take no part.

    Args:
        similarity: (N, C, K).
        label: (N,) int64 in [0, C]; C = ignored.
        started: (C,) bool.
    """
    pixel = _of_started(label, started).nonzero().flatten()
    best, k = similarity[pixel, label[pixel]].max(1)
    return Assigned(pixel, label[pixel] * similarity.shape[2] + k, best)


def nearest_of_all(similarity: Tensor, label: Tensor, started: Tensor) -> tuple[Tensor, Tensor]:
    """The prediction (10) beside the truth: which prototype of any class is the most similar.

    Args:
        similarity: (N, C, K).
        label: (N,) int64 in [0, C]; C = ignored.
        started: (C,) bool.
    Returns:
        (M,) int64 cluster in [0, C*K) and (M,) int64 label, of the pixels whose class has started.
    """
    known = _of_started(label, started)
    reachable = similarity[known].masked_fill(~started.view(1, -1, 1), -torch.inf)
    return reachable.flatten(1).argmax(1), label[known]


def _of_started(label: Tensor, started: Tensor) -> Tensor:
    """(N,) bool: pixels with a label, of a class that has started."""
    return torch.cat([started, torch.zeros(1, dtype=torch.bool)])[label]
