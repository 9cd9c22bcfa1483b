"""Steps 4 and 5 of an iteration: cluster the pixels of all views, move the prototypes (Algorithm 1,
lines 6-8). Pure.

B images, C classes, K prototypes a class, D embedding size, N pixels of a view on the embedding
grid.
"""

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from ..structures.step import AdaptationStep, PixelTargets, ScaleView
from ..structures.view import CONTEXT, View, at_cell_centres
from ..utils.seeding import fold_seed
from .bank import FeatureBank
from .centroid import CentroidPrototypes
from .clustering import Assignment, cluster_pixels
from .kmeans import kmeans, random_prototypes

logger = logging.getLogger(__name__)


class PrototypeLearner:
    """Feeds the bank, starts prototypes, assigns pixels to them and updates them, without
    gradients."""

    def __init__(
        self,
        prototypes: CentroidPrototypes,
        banks: Mapping[str, FeatureBank],
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
            banks: of each scale (``context``, ``detail``) that shall be clustered; all scales move
                the same prototypes.
            start_iter: iteration at which the first prototypes start.
            start_method: ``kmeans`` on the bank, or ``random``.
            start_samples: banked embeddings a prototype that a class needs before it starts.
            check_period: iterations between two looks at late classes and dead prototypes; these
                read from the device.
            seed: of the run; equal on all ranks.
        """
        self.prototypes = prototypes
        self.banks = banks
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
        self._waiting: list[tuple[Tensor, Tensor]] = []  # embeddings and clusters of earlier parts

    @torch.no_grad()
    def __call__(self, step: AdaptationStep) -> dict[str, Tensor]:
        """Fills ``step.pixels`` once prototypes exist. Returns scalars for the log."""
        seen = {scale: step.scales()[scale] for scale in self.banks}
        grids = {
            scale: {name: self._grid(view) for name, view in views.items()}
            for scale, views in seen.items()
        }
        embeddings = {
            scale: torch.cat([view.embeddings for view in views.values()])
            for scale, views in seen.items()
        }
        for scale, bank in self.banks.items():
            bank.push_(
                embeddings[scale],
                torch.cat([grid.trusted_label for grid in grids[scale].values()]),
            )
        if step.iteration < self.start_iter:
            return {}
        if step.is_first and self._looks_at(step.iteration):
            self._start_ready_classes(step.iteration)
            if self.revive:
                self.prototypes.revive_(*self._banked(), self.dead_after)
        assignments = {}
        for scale, bank in self.banks.items():
            pixels = embeddings[scale].permute(0, 2, 3, 1).flatten(0, 2)
            assignments[scale] = self._assign(pixels, grids[scale], bank)
            self._waiting.append((pixels, assignments[scale].clustered))
        step.pixels = {
            scale: _targets(grids[scale], assignments[scale].cluster) for scale in self.banks
        }
        if not step.is_last:
            return {}
        # One update for all scales and all parts of the batch: they are assigned to the same
        # prototypes, and move them together.
        waiting, self._waiting = self._waiting, []
        self.prototypes.update_(*(torch.cat(tensors) for tensors in zip(*waiting)))
        return self._scalars(assignments)

    def _grid(self, seen: ScaleView) -> "_Grid":
        size = seen.embeddings.shape[-2:]
        return _Grid(seen.view, size, self.prototypes.num_classes, self.ignore_value)

    def _scalars(self, assignments: Mapping[str, Assignment]) -> dict[str, Tensor]:
        scalars = self.prototypes.statistics(self.dead_after)
        for scale, bank in self.banks.items():
            suffix = "" if scale == CONTEXT else f"_{scale}"
            fill = bank.fill / bank.size
            scalars |= {
                f"marginal_violation{suffix}": assignments[scale].violation,
                f"bank_fill_mean{suffix}": fill.mean(),
                f"bank_fill_min{suffix}": fill.min(),
            }
        return {f"prototypes/{name}": value for name, value in scalars.items()}

    def _looks_at(self, iteration: int) -> bool:
        return iteration == self.start_iter or (iteration + 1) % self.check_period == 0

    def _assign(
        self, pixels: Tensor, grids: Mapping[str, "_Grid"], bank: FeatureBank
    ) -> Assignment:
        label = torch.cat([grid.label.flatten() for grid in grids.values()])
        trusted = torch.cat([grid.trusted.flatten() for grid in grids.values()])
        return cluster_pixels(
            self.prototypes,
            bank,
            pixels,
            label,
            trusted,
            pool=self.pool,
            pool_size=self.pool_size,
            epsilon=self.epsilon,
            sweeps=self.sweeps,
        )

    def _banked(self) -> tuple[Tensor, Tensor]:
        """The embeddings of all banks (C, slots, D), and which slots hold one (C, slots)."""
        banks = self.banks.values()
        features = torch.cat([bank.features for bank in banks], dim=1)
        return features, torch.cat([bank.filled for bank in banks], dim=1)

    def _start_ready_classes(self, iteration: int) -> None:
        classes, count, dim = self.prototypes.mean.shape
        waiting = ~self.prototypes.started
        if self.start_method == "random":
            ready = waiting
        else:
            banked = sum(bank.fill for bank in self.banks.values())
            capacity = sum(bank.size for bank in self.banks.values())
            ready = waiting & (banked >= min(self.start_samples * count, capacity))
        if not ready.any():
            return
        seed = fold_seed(self.seed, iteration)
        if self.start_method == "random":
            mean, variance = random_prototypes(
                classes, count, dim, seed=seed, device=waiting.device
            )
        else:
            which = ready.nonzero().flatten()
            features, filled = self._banked()
            result = kmeans(features[which], filled[which], count, seed=seed)
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
        label = at_cell_centres(view.label, size)
        everywhere = torch.ones_like(label, dtype=torch.bool)
        weight, from_source = view.weight, view.from_source
        self.num_classes = num_classes
        self.label = torch.where(label == ignore_value, num_classes, label)
        self.trusted = at_cell_centres(view.trusted, size) & (self.label < num_classes)
        self.weight = everywhere.float() if weight is None else at_cell_centres(weight, size)
        self.from_source = everywhere if from_source is None else at_cell_centres(from_source, size)

    @property
    def trusted_label(self) -> Tensor:
        return torch.where(self.trusted, self.label, self.num_classes)

    def targets(self, cluster: Tensor) -> PixelTargets:
        return PixelTargets(
            self.label.flatten(), self.weight.flatten(), cluster, self.from_source.flatten()
        )


def _targets(grids: Mapping[str, _Grid], cluster: Tensor) -> dict[str, PixelTargets]:
    """``cluster`` holds the pixels of all views, one view after the other."""
    sizes = [grid.label.numel() for grid in grids.values()]
    parts = torch.split(cluster, sizes)
    return {name: grid.targets(part) for (name, grid), part in zip(grids.items(), parts)}
