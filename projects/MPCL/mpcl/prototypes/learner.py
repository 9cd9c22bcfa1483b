"""Algorithm 1, lines 6 to 8: cluster the pixels of all views, move the prototypes.

Legend: B images, C classes, K prototypes a class, D embedding size, N pixels of all views at one
scale, P places of a pool for each class.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..structures.step import CONTEXT, Pixels, Step
from ..utils.distributed import from_first_rank, world_size
from ..utils.seeding import fold_seed
from .bank import FeatureBank
from .base import Prototypes
from .kmeans import kmeans, random_prototypes
from .numerics import one_hot, sample_per_group
from .sinkhorn import LEAST_SHARE, assign, balance

logger = logging.getLogger(__name__)

POOLS = ("bank", "batch")
STARTS = ("kmeans", "random")
LOOK_EVERY = 20  # iterations, at classes that wait for embeddings: a look reads from the device


@dataclass(kw_only=True)
class PrototypeLearner:
    """Feeds the banks, starts prototypes, assigns pixels to them and updates them, without
    gradients.

    The prototypes of each class are balanced on a pool of pixels that take part (their label is
    trusted, their class has prototypes, their embedding is finite); then every labelled pixel is
    assigned under that balance, and those that take part move the prototypes. The pool with the
    bank is our reading of the paper's "feature bank": one batch may show a single mode of a class,
    and equal shares within it would tear that mode apart.

    Attributes:
        prototypes: of any type; all scales move the same ones.
        banks: of each scale (``context``, ``detail``) that shall be clustered.
        pool: ``"batch"`` balances on the batch's pixels, the literal Eq. (13); ``"bank"`` on at
            most ``pool_size`` over all ranks, with the same number of places for each class, half
            of them from the batch and half from the bank.
        pool_size: see above.
        epsilon: entropic weight of Sinkhorn, in units of the similarity.
        sweeps: of Sinkhorn.
        start_iter: iteration at which the first prototypes start.
        start_method: ``"kmeans"`` on the bank, or ``"random"``, at unit scale.
        start_samples: banked embeddings a prototype that a class needs before it starts.
        seed: of the run; equal on all ranks.
        num_started: classes with prototypes, as far as the host knows: it reads that from the
            device at a start alone.
    Raises: ValueError: ``pool`` or ``start_method`` is unknown, or ``pool_size`` is too small for
        any class to be balanced.
    """

    prototypes: Prototypes
    banks: Mapping[str, FeatureBank]
    pool: str = "bank"
    pool_size: int = 20_000
    epsilon: float
    sweeps: int = 10
    start_iter: int
    start_method: str = "kmeans"
    start_samples: int
    seed: int
    num_started: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.pool not in POOLS:
            raise ValueError(f"pool is {self.pool!r}, expected one of {POOLS}")
        if self.start_method not in STARTS:
            raise ValueError(f"start_method is {self.start_method!r}, expected one of {STARTS}")
        classes, prototypes = self.prototypes.num_classes, self.prototypes.num_prototypes
        halves = 2 * classes * world_size()
        self.places = self.pool_size // halves  # of each class in each half of the pool, each rank
        enough = -(-LEAST_SHARE * prototypes // (2 * world_size()))
        if self.pool == "bank" and self.places < enough:
            raise ValueError(
                f"pool_size is {self.pool_size}, expected at least {halves * enough}: with fewer "
                f"than {LEAST_SHARE} places for each of the {prototypes} prototypes of "
                f"{classes} classes, in 2 halves on {world_size()} ranks, none is balanced"
            )

    @classmethod
    def from_config(cls, cfg: Any, head: Any) -> "PrototypeLearner | None":
        """Of the student's prototype head; None without one."""
        if head is None:
            return None
        proto = cfg.PROTOTYPES
        num_bytes = sum(bank.features.nbytes for bank in head.banks.values())
        logger.info(
            f"Feature banks ({', '.join(head.banks)}): {num_bytes / 2**20:.0f} MiB "
            f"({head.prototypes.num_classes} classes x {proto.BANK.SIZE} embeddings of "
            f"{proto.DIM} channels each)"
        )
        return cls(
            prototypes=head.prototypes,
            banks=dict(head.banks.items()),
            pool=proto.CLUSTER_POOL,
            pool_size=proto.POOL_SIZE,
            epsilon=(proto.SINKHORN.EPSILON or head.prototypes.epsilon) * head.prototypes.unit,
            sweeps=proto.SINKHORN.SWEEPS,
            start_iter=proto.INIT.ITER,
            start_method=proto.INIT.METHOD,
            start_samples=proto.INIT.MIN_SAMPLES,
            seed=cfg.SEED,
        )

    def count_started(self) -> None:
        """Counts the classes with prototypes, such as those of a checkpoint."""
        self.num_started = int(self.prototypes.started.sum())

    @torch.no_grad()
    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Fills ``step.pixels``; no pixel has a cluster before prototypes exist. Every rank must
        call it.

        Returns: scalars for the log.
        """
        num_classes, num_prototypes = self.prototypes.num_classes, self.prototypes.num_prototypes
        step.pixels = {s: step.pixels_at(s, num_classes, num_prototypes) for s in self.banks}
        scales = {scale: Pixels.cat([*views.values()]) for scale, views in step.pixels.items()}
        for scale, pixels in scales.items():
            trusted = torch.where(pixels.trusted, pixels.label, num_classes)
            self.banks[scale].push_(pixels.embeddings, trusted)
        if step.iteration < self.start_iter:
            return {}
        look = step.iteration == self.start_iter or (step.iteration + 1) % LOOK_EVERY == 0
        if look and self.num_started < num_classes:
            self._start_ready_classes(step.iteration)

        logged, moving = {}, []
        for scale, pixels in scales.items():
            bank = self.banks[scale]
            cluster, moves, violation = self._cluster(pixels, bank)
            views = step.pixels[scale].values()
            sizes = [len(view.label) for view in views]
            for view, part in zip(views, torch.split(cluster.view_as(pixels.label), sizes)):
                view.cluster = part
            moving.append((pixels.rows, moves))
            suffix, fill = "" if scale == CONTEXT else f"_{scale}", bank.fill / bank.size
            logged[f"marginal_violation{suffix}"] = violation
            logged[f"bank_fill_mean{suffix}"] = fill.mean()
            logged[f"bank_fill_min{suffix}"] = fill.min()
        # All scales are assigned to the same prototypes, and move them together: line 8.
        logged |= self.prototypes.update_(*(torch.cat(parts) for parts in zip(*moving)))
        return {f"prototypes/{name}": value for name, value in logged.items()}

    def _cluster(self, pixels: Pixels, bank: FeatureBank) -> tuple[Tensor, Tensor, Tensor]:
        """Assigns pixels to prototypes of their classes, lines 6 and 7: Eq. (13), (14).

        A pixel whose class has started and whose embedding is finite has a cluster, and enters the
        losses. If it is trusted, too, it balances the clustering and moves its prototype.

        Returns: (N,) the cluster of each pixel, and of those that move prototypes, class * K + k,
            where C*K = none; and by how much the clustering is not balanced, a scalar.
        """
        num_classes, num_prototypes = self.prototypes.num_classes, self.prototypes.num_prototypes
        label, none = pixels.label.flatten(), num_classes * num_prototypes
        started = torch.cat([self.prototypes.started, self.prototypes.started.new_zeros(1)])
        similarity = self.prototypes.own_similarity(pixels.rows, label)
        has_cluster = started[label] & similarity.isfinite().all(1)
        takes_part = pixels.trusted.flatten() & has_cluster
        pool = self._pool(similarity, torch.where(takes_part, label, num_classes), bank)
        potentials, violation = balance(*pool, epsilon=self.epsilon, sweeps=self.sweeps)
        own = assign(similarity, label, potentials, self.epsilon)
        cluster = torch.where(has_cluster, label * num_prototypes + own, none)
        return cluster, torch.where(takes_part, cluster, none), violation

    def _pool(self, similarity: Tensor, label: Tensor, bank: FeatureBank) -> tuple[Tensor, Tensor]:
        """This rank's pool: similarities (K, C, P), and the places (C, P) that hold a pixel.

        Args:
            similarity: (N, K) of each pixel to the prototypes of its class.
            label: (N,) in [0, C]; C takes no part.
        """
        num_classes = self.prototypes.num_classes
        if self.pool == "batch":  # every pixel has a place in every class, valid in its own
            everywhere = similarity.t().unsqueeze(1).expand(-1, num_classes, -1)
            return everywhere, one_hot(label, num_classes, torch.bool).t()
        index, valid = sample_per_group(label, num_classes, self.places)
        points, filled = bank.sample(self.places)
        banked = self.prototypes.class_similarity(points)
        both = torch.cat([similarity[index], banked], dim=1)  # (C, P, K)
        return both.permute(2, 0, 1).contiguous(), torch.cat([valid, filled], dim=1)

    def _banked(self, which: Tensor) -> tuple[Tensor, Tensor]:
        """All that the banks hold of some classes (n,): points (n, S, D), and which are valid.

        Made in place: the start is the moment of the most memory, and banks are large.
        """
        banks = self.banks.values()
        filled = torch.cat([bank.filled[which] for bank in banks], dim=1)
        first = next(iter(banks)).features
        points = first.new_empty(*filled.shape, first.shape[-1])
        for bank, part in zip(banks, torch.split(points, [bank.size for bank in banks], dim=1)):
            for place, index in zip(part, which.tolist()):
                place.copy_(bank.features[index])
        return points, filled

    def _start_ready_classes(self, iteration: int) -> None:
        classes, count, dim = self.prototypes.mean.shape
        ready = ~self.prototypes.started
        if self.start_method == "kmeans":
            banked = sum(bank.fill for bank in self.banks.values())
            capacity = sum(bank.size for bank in self.banks.values())
            ready = ready & (banked >= min(self.start_samples * count, capacity))
        if not ready.any():
            return self.count_started()
        seed = fold_seed(self.seed, iteration)
        if self.start_method == "random":
            mean, variance = random_prototypes(classes, count, dim, seed=seed, device=ready.device)
        else:
            which = ready.nonzero().flatten()
            result = kmeans(*self._banked(which), count, seed=seed)
            mean, variance = torch.zeros(2, classes, count, dim, device=which.device)
            mean[which], variance[which] = result.mean, result.variance
        # Banks and seeds are equal on all ranks; but unlike GPUs draw unlike numbers.
        self.prototypes.start_(ready, from_first_rank(mean), from_first_rank(variance))
        self.count_started()
        logger.info(
            f"Iteration {iteration}: prototypes start ({self.start_method}) for classes "
            f"{ready.nonzero().flatten().tolist()}; {self.num_started} of "
            f"{classes} classes have them"
        )
