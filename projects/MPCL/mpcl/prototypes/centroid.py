"""Centroid prototypes: K means per class, similarity by distance, moving-average update.

Legend: B images, C classes, K prototypes a class, D embedding size, N pixels.
"""

import math

import torch
from torch import Tensor, nn

from ..utils.distributed import sum_over_ranks
from .numerics import (
    full_float32,
    masked_mean,
    one_hot,
    squared_distance,
    squared_distance_in_chunks,
)
from .tiles import tile_by_class

DISTANCES = ("squared", "euclidean")
SCALES = ("mean", "sum")
_ROOT_EPS = 1e-8  # the root's derivative is infinite at 0, where a pixel lies on its prototype


class CentroidPrototypes(nn.Module):
    """K means per class.

    Prototypes are buffers, equal on all ranks and part of the checkpoint: no gradient ever reaches
    them. mean (C, K, D) float32; started (C,) bool, False until `start_`; idle (C, K) int64,
    updates since the last pixel. Not saved, for the log only: count (C, K) pixels and drift (C, K)
    root-mean-square step of the last update.

    Source: MPCL, Eqs. (5), (8), (20). The squared distance is our reading of (8); the mean over
    channels is ours.

    Args:
        num_classes: C.
        num_prototypes: K.
        dim: D.
        momentum: in [0, 1), the weight kept of the old value in `update_`.
        distance: ``"squared"`` or ``"euclidean"``.
        scale: ``"mean"`` divides squared distances by D (and distances by its root); ``"sum"`` does
            not.
    Raises:
        ValueError: an argument is out of its range or an unknown choice.
    """

    mean: Tensor
    started: Tensor
    idle: Tensor
    count: Tensor
    drift: Tensor
    _highest_moment = 1  # of the embeddings, that an update needs

    def __init__(
        self,
        num_classes: int,
        num_prototypes: int,
        dim: int,
        *,
        momentum: float,
        distance: str = "squared",
        scale: str = "mean",
    ):
        super().__init__()
        sizes = {"num_classes": num_classes, "num_prototypes": num_prototypes, "dim": dim}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}, expected at least 1")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, expected a number in [0, 1)")
        if distance not in DISTANCES:
            raise ValueError(f"distance is {distance!r}, expected one of {DISTANCES}")
        if scale not in SCALES:
            raise ValueError(f"scale is {scale!r}, expected one of {SCALES}")
        self.num_classes, self.num_prototypes, self.dim = num_classes, num_prototypes, dim
        self.momentum, self.distance = momentum, distance
        self.divisor = dim if scale == "mean" else 1
        shape = (num_classes, num_prototypes)
        self.register_buffer("mean", torch.zeros(*shape, dim))
        self.register_buffer("started", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("idle", torch.zeros(shape, dtype=torch.int64))
        self.register_buffer("count", torch.zeros(shape), persistent=False)
        self.register_buffer("drift", torch.zeros(shape), persistent=False)

    # --- similarity ---

    def similarity(self, embeddings: Tensor) -> Tensor:
        """Similarity of every pixel to every prototype, also to those not yet started (the losses
        mask them).

        Args:
            embeddings: (N, D), the only input that receives gradients.
        Returns:
            (N, C, K) float32 whatever autocast and TF32 say; larger is closer.
        """
        with full_float32(embeddings.device):
            moments = (moment.flatten(0, 1) for moment in self._moments())
            similarity = self._compare(embeddings.float(), *moments)
        return similarity.view(-1, self.num_classes, self.num_prototypes)

    def class_similarity(self, points: Tensor) -> Tensor:
        """Similarity of each class's points (C, n, D) to the prototypes of that class: (C, n, K)
        float32.
        """
        with full_float32(points.device):
            return self._compare(points.float(), *self._moments())

    def own_similarity(self, embeddings: Tensor, label: Tensor) -> Tensor:
        """Similarity of every pixel to the prototypes of its own class, where `similarity` has all.

        Args:
            embeddings: (N, D).
            label: (N,) int64 in [0, C]; what pixels with label C get has no meaning.
        Returns:
            (N, K) float32.
        """
        if len(label) == 0:
            return embeddings.new_zeros(0, self.num_prototypes, dtype=torch.float32)
        tiles = tile_by_class(label, self.num_classes)
        with full_float32(embeddings.device):
            moments = (moment[tiles.label] for moment in self._moments())
            return tiles.collect(self._compare(tiles.lay_out(embeddings).float(), *moments))

    def _moments(self) -> tuple[Tensor, ...]:
        """What describes the prototypes, each (C, K, D)."""
        return (self.mean,)

    def _compare(self, points: Tensor, mean: Tensor) -> Tensor:
        """(..., n, D) points against (..., m, D) prototypes -> (..., n, m)."""
        if self.distance == "squared":
            return squared_distance(points, mean).mul_(-1 / self.divisor)
        distance = squared_distance(points, mean).mul_(1 / self.divisor)
        return -(distance.clamp_min(0) + _ROOT_EPS).sqrt()

    # --- start, update, revival ---

    @torch.no_grad()
    def start_(self, classes: Tensor, mean: Tensor, variance: Tensor) -> None:
        """Starts, or starts anew, the masked classes; all others stay as they are.

        Args:
            classes: (C,) bool.
            mean: (C, K, D).
            variance: (C, K, D); centroids have no use for it.
        """
        chosen = classes.view(-1, 1, 1)
        self.mean.copy_(torch.where(chosen, mean, self.mean))
        self.idle.masked_fill_(chosen.squeeze(-1), 0)
        self.started.logical_or_(classes)

    @torch.no_grad()
    def update_(self, embeddings: Tensor, cluster: Tensor) -> None:
        """Moves each prototype towards the mean of its pixels on all ranks (Eq. 20). Every rank
        must call it.

        Prototypes without pixels and classes that have not started keep their values. Embeddings
        that are not finite weigh zero.

        Args:
            embeddings: (N, D).
            cluster: (N,) int64 in [0, C*K]; C*K takes no part.
        """
        count, *sums = self._cluster_sums(embeddings.float(), cluster)
        count = count * self.started.unsqueeze(1)
        has_pixels = count > 0
        weight = (1 - self.momentum) * has_pixels.unsqueeze(-1)
        before = self.mean.clone()
        self._move_(weight, *(total / count.clamp_min(1).unsqueeze(-1) for total in sums))
        self.drift.copy_((self.mean - before).square().mean(-1).sqrt())
        self.count.copy_(count)
        waiting = self.started.unsqueeze(1) & ~has_pixels
        self.idle.copy_(torch.where(waiting, self.idle + 1, 0))

    def _cluster_sums(self, embeddings: Tensor, cluster: Tensor) -> list[Tensor]:
        """Pixels (C, K), and sums (C, K, D) of their embeddings' powers, over all ranks."""
        if len(cluster) == 0:
            embeddings = embeddings.new_zeros(1, self.dim)
            cluster = cluster.new_full((1,), self.num_classes * self.num_prototypes)
        # The squared length overflows or is NaN whenever a channel would spoil the sums.
        finite = torch.linalg.vector_norm(embeddings, dim=1).square().isfinite()
        label = torch.where(finite, cluster // self.num_prototypes, self.num_classes)
        tiles = tile_by_class(label, self.num_classes)
        powers = [tiles.lay_out(embeddings)]
        if self._highest_moment == 2:
            powers.append(powers[0].square())
        with full_float32(embeddings.device):
            member = one_hot(tiles.lay_out(cluster % self.num_prototypes), self.num_prototypes)
            member = (member * tiles.valid.unsqueeze(-1)).mT  # (M, K, T)
            sums = [member.sum(-1, keepdim=True), *(member @ power for power in powers)]
            of_class = one_hot(tiles.label, self.num_classes).t()  # (C, M)
            total = of_class @ torch.cat(sums, dim=-1).flatten(1)
        total = total.view(self.num_classes, self.num_prototypes, -1)
        # Where no pixel counts, what lies in the tiles may be NaN, and zero times NaN is NaN.
        total = torch.where(total[..., :1] > 0, total, 0.0)
        total = sum_over_ranks(total)  # one message for all of them
        return [total[..., 0], *total[..., 1:].chunk(self._highest_moment, dim=-1)]

    def _move_(self, weight: Tensor, first: Tensor) -> None:
        """Moves by ``weight`` (C, K, 1) towards the batch's ``first`` moments (C, K, D)."""
        self.mean.lerp_(first, weight)

    def dead(self, dead_after: int) -> Tensor:
        """(C, K) bool: started prototypes that got no pixel in the last ``dead_after`` updates or
        more.
        """
        return self.started.unsqueeze(1) & (self.idle >= dead_after)

    @torch.no_grad()
    def revive_(self, features: Tensor, filled: Tensor, dead_after: int) -> Tensor:
        """Re-starts dead prototypes, one after the other, at the banked embedding farthest from all
        living siblings.

        A class whose prototypes are *all* idle was merely absent from the batches and is left
        alone.

        Reads the whole bank: meant for logging intervals, not for each iteration.

        Args:
            features: (C, n, D) banked embeddings, finite.
            filled: (C, n) bool, places that hold one.
            dead_after: see :meth:`dead`.

        Returns:
            (C, K) bool: the prototypes that were moved. The same on all ranks, as prototypes and
            bank are.
        """
        dead = self.dead(dead_after)
        dead = dead & ~dead.all(1, keepdim=True)
        moved = torch.zeros_like(dead)
        classes = torch.arange(self.num_classes, device=dead.device)
        with full_float32(dead.device):
            distance = squared_distance_in_chunks(features, self.mean)
            nearest = distance.masked_fill(dead.unsqueeze(1), math.inf).amin(-1)
            nearest = nearest.masked_fill(~filled, -1)
            for k in range(self.num_prototypes):
                farthest, slot = nearest.max(1)
                moved[:, k] = dead[:, k] & (farthest > 0)
                point = features[classes, slot].float().unsqueeze(1)
                chosen = moved[:, k : k + 1]
                self.mean[:, k : k + 1] = torch.where(
                    chosen.unsqueeze(-1), point, self.mean[:, k : k + 1]
                )
                distance = squared_distance_in_chunks(features, point).squeeze(-1)
                nearest = torch.where(chosen, torch.minimum(nearest, distance), nearest)
        self.idle.masked_fill_(moved, 0)
        return moved

    # --- logging ---

    @torch.no_grad()
    def statistics(self, dead_after: int = 1000) -> dict[str, Tensor]:
        """Scalars on the device, about the last update:

        ``started`` classes; ``usage_entropy`` (see `usage_entropy`); ``dead`` prototypes;
        ``drift``, the root-mean-square step of a channel, averaged over the prototypes that got
        pixels.
        """
        return {
            "started": self.started.sum(),
            "usage_entropy": usage_entropy(self.count),
            "dead": self.dead(dead_after).sum(),
            "drift": masked_mean(self.drift, self.count > 0),
        }


def usage_entropy(count: Tensor) -> Tensor:
    """How evenly the prototypes of a class are used: 1 = equally, 0 = a single one. Mean over
    classes with pixels.

    Args:
        count: (C, K) pixels of each prototype.
    Returns:
        scalar in [0, 1]: entropy of the shares over ln K; 1 if K = 1, and 0 if no class has pixels.
    """
    total = count.sum(1)
    num_prototypes = count.shape[1]
    if num_prototypes == 1:
        evenness = torch.ones_like(total)
    else:
        share = count / total.clamp_min(1).unsqueeze(1)
        evenness = torch.special.entr(share).sum(1) / math.log(num_prototypes)
    return masked_mean(evenness, total > 0)
