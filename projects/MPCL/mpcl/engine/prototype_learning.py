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
from ..views import View, ViewOutputs
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
        grids = {name: self._grid(view, step.outputs[name]) for name, view in step.views()}
        for name, grid in grids.items():
            embeddings = step.outputs[name].embeddings
            assert embeddings is not None, "prototype learning needs a student with embeddings"
            self.bank.push_(embeddings, grid.trusted_label)
        if step.iteration < self.start_iter:
            return {}
        if self._looks_at(step.iteration):
            self._start_ready_classes(step.iteration)
            if self.revive:
                self.prototypes.revive_(self.bank, self.dead_after)
        pixels = torch.cat([step.outputs[name].pixels for name in grids])
        assignment = self._assign(pixels, grids)
        self.prototypes.update_(pixels, assignment.clustered)
        sizes = [grid.label.numel() for grid in grids.values()]
        for (name, grid), cluster in zip(grids.items(), torch.split(assignment.cluster, sizes)):
            step.pixels[name] = grid.targets(cluster)
        return {f"prototypes/{name}": value for name, value in self._scalars(assignment).items()}

    def _grid(self, view: View, outputs: ViewOutputs) -> "_Grid":
        size = outputs.logits.shape[-2:]
        return _Grid(view, size, self.prototypes.num_classes, self.ignore_value)

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
    """One view's labels, weights and masks on the embedding grid of ``size`` (h, w)."""

    def __init__(self, view: View, size: torch.Size, num_classes: int, ignore_value: int) -> None:
        label = _to_grid(view.label, size)
        everywhere = torch.ones_like(label, dtype=torch.bool)
        weight, from_source = view.weight, view.from_source
        self.num_classes = num_classes
        self.label = torch.where(label == ignore_value, num_classes, label)
        self.trusted = _to_grid(view.trusted, size) & (self.label < num_classes)
        self.weight = everywhere.float() if weight is None else _to_grid(weight, size)
        self.from_source = everywhere if from_source is None else _to_grid(from_source, size)

    @property
    def trusted_label(self) -> Tensor:
        return torch.where(self.trusted, self.label, self.num_classes)

    def targets(self, cluster: Tensor) -> PixelTargets:
        return PixelTargets(
            self.label.flatten(), self.weight.flatten(), cluster, self.from_source.flatten()
        )


def _to_grid(pixel_map: Tensor, size: torch.Size) -> Tensor:
    """Nearest-neighbour down-sampling of a (B, H, W) map of any type. float32 holds labels
    exactly."""
    small = F.interpolate(pixel_map[:, None].float(), size=size, mode="nearest")[:, 0]
    return small.to(pixel_map.dtype)
