"""Steps 4 and 5 of an iteration: cluster the pixels of all views, move the prototypes (Algorithm 1,
lines 6-8). Pure.

B images, C classes, K prototypes a class, D embedding size, N pixels of a view on the embedding
grid.
"""

import logging
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from ..prototypes.bank import FeatureBank
from ..prototypes.centroid import CentroidPrototypes
from ..prototypes.clustering import Assignment, cluster_pixels
from ..prototypes.kmeans import kmeans, random_prototypes
from ..utils.seeding import fold_seed
from ..views import View
from .step import AdaptationStep, PixelTargets

logger = logging.getLogger(__name__)


class PrototypeLearner:
    """Feeds the bank, starts prototypes, assigns pixels to them and updates them, without
    gradients."""

    def __init__(
        self,
        prototypes: CentroidPrototypes,
        bank: FeatureBank,
        *,
        pool: str,
        pool_size: int,
        epsilon: float,
        sweeps: int,
        start_iter: int,
        start_method: str,
        start_samples: int,
        dead_after: int,
        revive: bool,
        check_period: int,
        ignore_value: int,
        seed: int,
    ) -> None:
        """
        Args:
            start_iter: iteration at which the first prototypes start.
            start_method: ``kmeans`` on the bank, or ``random``.
            start_samples: banked embeddings a prototype that a class needs before it starts.
            check_period: iterations between two looks at late classes and dead prototypes; these
                read from the device.
            seed: of the run; equal on all ranks.
        """
        self.prototypes = prototypes
        self.bank = bank
        self.pool = pool
        self.pool_size = pool_size
        self.epsilon = epsilon
        self.sweeps = sweeps
        self.start_iter = start_iter
        self.start_method = start_method
        self.start_samples = start_samples
        self.dead_after = dead_after
        self.revive = revive
        self.check_period = check_period
        self.ignore_value = ignore_value
        self.seed = seed

    @torch.no_grad()
    def __call__(self, step: AdaptationStep) -> dict[str, Tensor]:
        """Fills ``step.pixels`` once prototypes exist. Returns scalars for the log."""
        grids = {
            name: _Grid(
                view, _embeddings(step, name), self.prototypes.num_classes, self.ignore_value
            )
            for name, view in step.views()
        }
        for grid in grids.values():
            self.bank.push_(grid.embeddings, grid.trusted_label)
        if step.iteration < self.start_iter:
            return {}
        if self._looks_at(step.iteration):
            self._start_ready_classes(step.iteration)
            if self.revive:
                self.prototypes.revive_(self.bank, self.dead_after)
        pixels = torch.cat([grid.flat_embeddings for grid in grids.values()])
        assignment = self._assign(pixels, grids)
        self.prototypes.update_(pixels, assignment.clustered)
        sizes = [grid.label.numel() for grid in grids.values()]
        for (name, grid), cluster in zip(grids.items(), assignment.cluster.split(sizes)):
            step.pixels[name] = grid.targets(cluster)
        return {f"prototypes/{name}": value for name, value in self._scalars(assignment).items()}

    def _scalars(self, assignment: Assignment) -> dict[str, Tensor]:
        fill = self.bank.fill / self.bank.size
        return {
            "marginal_violation": assignment.violation,
            "bank_fill_mean": fill.mean(),
            "bank_fill_min": fill.min(),
            **self.prototypes.statistics(self.dead_after),
        }

    def _looks_at(self, iteration: int) -> bool:
        return iteration == self.start_iter or (iteration + 1) % self.check_period == 0

    def _assign(self, pixels: Tensor, grids: Mapping[str, "_Grid"]) -> Assignment:
        label = torch.cat([grid.label.flatten() for grid in grids.values()])
        trusted = torch.cat([grid.trusted.flatten() for grid in grids.values()])
        return cluster_pixels(
            self.prototypes,
            self.bank,
            pixels,
            label,
            trusted,
            pool=self.pool,
            pool_size=self.pool_size,
            epsilon=self.epsilon,
            sweeps=self.sweeps,
        )

    def _start_ready_classes(self, iteration: int) -> None:
        classes, count, dim = self.prototypes.mean.shape
        waiting = ~self.prototypes.started
        if self.start_method == "random":
            ready = waiting
        else:
            ready = waiting & (self.bank.fill >= min(self.start_samples * count, self.bank.size))
        if not ready.any():
            return
        seed = fold_seed(self.seed, iteration)
        if self.start_method == "random":
            mean, variance = random_prototypes(
                classes, count, dim, seed=seed, device=waiting.device
            )
        else:
            which = ready.nonzero().flatten()
            result = kmeans(self.bank.features[which], self.bank.filled[which], count, seed=seed)
            mean, variance = torch.zeros(2, classes, count, dim, device=which.device)
            mean[which], variance[which] = result.mean, result.variance
        self.prototypes.start_(ready, mean, variance)
        logger.info(
            f"Iteration {iteration}: prototypes start ({self.start_method}) for classes "
            f"{ready.nonzero().flatten().tolist()}; {int(self.prototypes.started.sum())} of "
            f"{classes} classes have them"
        )


class _Grid:
    """One view's pixels on the embedding grid."""

    def __init__(self, view: View, embeddings: Tensor, num_classes: int, ignore_value: int) -> None:
        size = embeddings.shape[-2:]
        label = _to_grid(view.label, size)
        self.num_classes = num_classes
        self.embeddings = embeddings
        self.label = torch.where(label == ignore_value, num_classes, label)
        self.trusted = _to_grid(view.trusted, size) & (self.label < num_classes)
        self.weight = (
            torch.ones_like(label, dtype=torch.float32)
            if view.weight is None
            else _to_grid(view.weight, size)
        )
        self.from_source = (
            torch.ones_like(self.trusted)
            if view.from_source is None
            else _to_grid(view.from_source, size)
        )

    @property
    def trusted_label(self) -> Tensor:
        return torch.where(self.trusted, self.label, self.num_classes)

    @property
    def flat_embeddings(self) -> Tensor:
        return self.embeddings.permute(0, 2, 3, 1).flatten(0, 2)

    def targets(self, cluster: Tensor) -> PixelTargets:
        return PixelTargets(
            self.label.flatten(), self.weight.flatten(), cluster, self.from_source.flatten()
        )


def _embeddings(step: AdaptationStep, view: str) -> Tensor:
    embeddings = step.outputs[view].embeddings
    assert embeddings is not None, "prototype learning needs a student with a prototype head"
    return embeddings.detach()


def _to_grid(pixel_map: Tensor, size: torch.Size) -> Tensor:
    """Nearest-neighbour down-sampling of a (B, H, W) map of any type. float32 holds labels
    exactly."""
    small = F.interpolate(pixel_map[:, None].float(), size=size, mode="nearest")[:, 0]
    return small.to(pixel_map.dtype)
