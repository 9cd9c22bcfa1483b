"""What centroid and Gaussian prototypes share: K a class, a start, and a moving-average update.

Legend: C classes, K prototypes a class, D embedding size, N pixels, S numbers that describe a
prototype.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.distributed import sum_over_ranks
from .numerics import full_float32, masked_mean, one_hot

SIMILARITY_SCALES = ("mean", "sum")
DEAD_AFTER = 1000  # updates without a pixel, for the log


class Prototypes(nn.Module, ABC):
    """K prototypes of each class, in buffers: equal on all ranks, part of the checkpoint, and never
    reached by a gradient.

    A type of prototypes says how it is described (``_description``), how pixels compare with that
    (``_compare``), and how moments of pixels move it (``_moments``, ``_move_``).

    Buffers: mean (C, K, D) float32; start_mean (C, K, D), where they started; started (C,) bool,
    False until :meth:`start_`; idle (C, K) int64, updates since the last pixel.

    Attributes:
        epsilon: entropic weight of the clustering that suits the type, at the scale ``"mean"``.

    Args:
        num_classes: C.
        num_prototypes: K.
        dim: D.
        momentum: in [0, 1), the weight kept of the old value in :meth:`update_`.
        scale: ``"mean"`` divides similarities by D; ``"sum"`` does not.
    Raises: ValueError: an argument is out of its range or an unknown choice.
    """

    epsilon: float
    mean: Tensor
    start_mean: Tensor
    started: Tensor
    idle: Tensor

    def __init__(
        self,
        num_classes: int,
        num_prototypes: int,
        dim: int,
        *,
        momentum: float,
        scale: str = "mean",
    ):
        super().__init__()
        sizes = {"num_classes": num_classes, "num_prototypes": num_prototypes, "dim": dim}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} is {size}, expected at least 1")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}, expected a number in [0, 1)")
        if scale not in SIMILARITY_SCALES:
            raise ValueError(f"scale is {scale!r}, expected one of {SIMILARITY_SCALES}")
        self.num_classes, self.num_prototypes = num_classes, num_prototypes
        self.momentum = momentum
        self.divisor = dim if scale == "mean" else 1
        shape = (num_classes, num_prototypes)
        self.register_buffer("mean", torch.zeros(*shape, dim))
        self.register_buffer("start_mean", torch.zeros(*shape, dim))
        self.register_buffer("started", torch.zeros(num_classes, dtype=torch.bool))
        self.register_buffer("idle", torch.zeros(shape, dtype=torch.int64))

    @classmethod
    def from_config(cls, cfg: Any) -> "Prototypes":
        return cls(
            cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            cfg.PROTOTYPES.NUM_PER_CLASS,
            cfg.PROTOTYPES.DIM,
            momentum=cfg.PROTOTYPES.MOMENTUM,
            scale=cfg.PROTOTYPES.SIMILARITY_SCALE,
            **cls._own_options(cfg.PROTOTYPES),
        )

    @staticmethod
    def _own_options(proto: Any) -> dict[str, Any]:
        """Further arguments of a type, from the keys of PROTOTYPES."""
        return {}

    @property
    def unit(self) -> float:
        """How many times as large similarities are as at the scale ``"mean"``."""
        return self.mean.shape[-1] / self.divisor

    # --- what a type of prototypes is

    @abstractmethod
    def _description(self) -> Tensor:
        """(C, K, S) numbers that describe each prototype."""

    @abstractmethod
    def _compare(self, points: Tensor, description: Tensor) -> Tensor:
        """Similarity of (..., n, D) points to (..., m, S) prototypes: (..., n, m)."""

    @abstractmethod
    def _moments(self, embeddings: Tensor) -> tuple[Tensor, ...]:
        """Functions (N, D) of the pixels (N, D), whose means move a prototype."""

    @abstractmethod
    def _move_(self, weight: Tensor, *moments: Tensor) -> None:
        """Moves by ``weight`` (C, K, 1) towards the means (C, K, D) of :meth:`_moments`."""

    # --- similarity

    def similarity(self, embeddings: Tensor) -> Tensor:
        """Similarity of every pixel to every prototype, also to those not yet started (the losses
        mask them).

        Args:
            embeddings: (N, D), the only input that receives gradients.
        Returns: (N, C, K) float32 whatever autocast and TF32 say; larger is closer.
        """
        with full_float32(embeddings.device):
            table = self._compare(embeddings.float(), self._description().flatten(0, 1))
        return table.view(-1, self.num_classes, self.num_prototypes)

    def own_similarity(self, embeddings: Tensor, label: Tensor) -> Tensor:
        """(N, K): :meth:`similarity` to the prototypes of each pixel's own class.

        Args:
            embeddings: (N, D).
            label: (N,) int64 in [0, C]; what pixels with label C get has no meaning.
        """
        own = label.clamp(max=self.num_classes - 1).view(-1, 1, 1)
        own = own.expand(-1, 1, self.num_prototypes)
        return self.similarity(embeddings).gather(1, own).squeeze(1)

    def class_similarity(self, points: Tensor) -> Tensor:
        """Similarity of each class's points (C, n, D) to the prototypes of that class: (C, n, K)
        float32.
        """
        with full_float32(points.device):
            return self._compare(points.float(), self._description())

    # --- start and update

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
        self.start_mean.copy_(torch.where(chosen, mean, self.start_mean))
        self.idle.masked_fill_(chosen.squeeze(-1), 0)
        self.started.logical_or_(classes)

    @torch.no_grad()
    def update_(self, embeddings: Tensor, cluster: Tensor) -> dict[str, Tensor]:
        """Moves each prototype towards its pixels on all ranks, Eq. (20), (21). Every rank must
        call it.

        Prototypes without pixels and classes that have not started keep their values. Embeddings
        that are not finite weigh zero.

        Args:
            embeddings: (N, D).
            cluster: (N,) int64 in [0, C*K], class * K + k; C*K takes no part.
        Returns: scalars on the device, for the log: see :meth:`_statistics`.
        """
        count, *moments = self._cluster_means(embeddings.float(), cluster)
        count = count * self.started.unsqueeze(1)
        has_pixels = count > 0
        before = self.mean.clone()
        self._move_((1 - self.momentum) * has_pixels.unsqueeze(-1), *moments)
        waiting = self.started.unsqueeze(1) & ~has_pixels
        self.idle.copy_(torch.where(waiting, self.idle + 1, 0))
        return self._statistics(count, (self.mean - before).square().mean(-1).sqrt())

    def _cluster_means(self, embeddings: Tensor, cluster: Tensor) -> list[Tensor]:
        """Pixels (C, K) of each prototype, and their mean moments (C, K, D), over all ranks."""
        # The squared length overflows or is NaN whenever a channel would spoil the sums.
        finite = torch.linalg.vector_norm(embeddings, dim=1).square().isfinite()
        embeddings = torch.where(finite.unsqueeze(1), embeddings, 0.0)
        with full_float32(embeddings.device):
            # A product with a one-hot table, unlike an indexed addition, repeats exactly on CUDA.
            member = one_hot(cluster, self.num_classes * self.num_prototypes)
            member = (member * finite.unsqueeze(1)).t()
            moments = self._moments(embeddings)
            sums = [member.sum(1, keepdim=True), *(member @ moment for moment in moments)]
        total = sum_over_ranks(torch.cat(sums, dim=1))  # one message for all of them
        total = total.view(self.num_classes, self.num_prototypes, -1)
        means = total[..., 1:] / total[..., :1].clamp_min(1)
        return [total[..., 0], *means.chunk(len(moments), dim=-1)]

    @property
    def dead(self) -> Tensor:
        """(C, K) bool: prototypes of started classes without a pixel in the last DEAD_AFTER
        updates."""
        return self.started.unsqueeze(1) & (self.idle >= DEAD_AFTER)

    def _statistics(self, count: Tensor, drift: Tensor) -> dict[str, Tensor]:
        """``started`` classes; ``usage_entropy``, see :func:`usage_entropy`; ``dead`` prototypes;
        ``drift``, the root-mean-square step of a channel in this update, averaged over the
        prototypes that got pixels.

        Args:
            count: (C, K) pixels of the update.
            drift: (C, K) root-mean-square step.
        """
        return {
            "started": self.started.sum(),
            "usage_entropy": usage_entropy(count),
            "dead": self.dead.sum(),
            "drift": masked_mean(drift, count > 0),
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
