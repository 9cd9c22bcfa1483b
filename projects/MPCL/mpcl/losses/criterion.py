"""From one iteration's views, outputs and assignments to its losses, Eq. (19)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..structures import Outputs, Step, View
from .feature_distance import feature_distance
from .prototype import PrototypeLosses
from .segmentation import segmentation_loss


@dataclass(kw_only=True)
class Criterion:
    """All losses of an iteration; which ones depends on what the step holds.

    Attributes:
        num_classes: C.
        detail_weight: lambda_d of a multi-resolution student, see :func:`segmentation_loss`.
        masked_weight: of the masked view's loss.
        distance_weight, distance_classes, distance_min_ratio: of :func:`feature_distance`.
        prototype_losses: None = without prototypes.
    """

    num_classes: int
    detail_weight: float
    masked_weight: float
    distance_weight: float
    distance_classes: Sequence[int]
    distance_min_ratio: float
    prototype_losses: PrototypeLosses | None

    @classmethod
    def from_config(cls, cfg: Any, head: Any) -> "Criterion":
        """Of a student with this prototype head; None = without one."""
        distance = cfg.SELF_TRAINING.FEATURE_DISTANCE
        return cls(
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            detail_weight=cfg.MODEL.HRDA.DETAIL_WEIGHT,
            masked_weight=cfg.SELF_TRAINING.MASKED.WEIGHT,
            distance_weight=distance.WEIGHT,
            distance_classes=distance.CLASSES,
            distance_min_ratio=distance.MIN_RATIO,
            prototype_losses=PrototypeLosses.from_config(cfg, head),
        )

    def __call__(self, step: Step) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is what is minimised."""
        losses = {"loss_sem_seg": self._segmentation(step.outputs["source"], step.source)}  # (1)
        if step.mixed is not None:
            losses["loss_sem_seg_mix"] = self._segmentation(
                step.outputs["mixed"], step.mixed
            )  # (3)
        if step.reference_features is not None:
            losses["loss_feature_distance"] = self.distance_weight * feature_distance(
                step.outputs["source"].features,
                step.reference_features,
                step.source.label,
                self.distance_classes,
                self.num_classes,
                self.distance_min_ratio,
            )
        if self.prototype_losses is not None and step.pixels:
            losses |= self.prototype_losses(step.pixels)
        return losses

    def of_masked(self, outputs: Outputs, view: View) -> dict[str, Tensor]:
        """The masked view's loss (MIC, Eq. 6), weighted as :meth:`__call__`'s are."""
        return {"loss_sem_seg_masked": self.masked_weight * self._segmentation(outputs, view)}

    def _segmentation(self, outputs: Outputs, view: View) -> Tensor:
        return segmentation_loss(outputs, view, self.detail_weight)
