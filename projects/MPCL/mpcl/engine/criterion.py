"""From one iteration's views, outputs and assignments to its losses, Eq. (19). Pure: tensors in,
scalars out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..losses import feature_distance, pixel_cross_entropy
from ..prototypes.centroid import CentroidPrototypes
from ..prototypes.contrastive import pixel_prototype_contrast, prototype_consistency
from .step import AdaptationStep, PixelTargets


class PrototypeCriterion:
    """Contrast (15), (17) and consistency (12) against the prototypes, with their weights."""

    def __init__(
        self,
        prototypes: CentroidPrototypes,
        *,
        temperature: float,
        contrast_weight: float,
        consistency_weight: float,
        contrast_views: Sequence[str],
        in_class_negatives: bool,
        consistency_weighted: bool,
    ) -> None:
        """
        Args:
            temperature: tau.
            contrast_weight, consistency_weight: lambda_1 and lambda_2.
            contrast_views: some of ``source``, ``mixed``, ``target`` (the mixed view without its
                source pixels).
            in_class_negatives: whether siblings of the positive are negatives.
            consistency_weighted: whether confidence weighs the consistency.
        """
        self.prototypes = prototypes
        self.temperature = temperature
        self.contrast_weight = contrast_weight
        self.consistency_weight = consistency_weight
        self.contrast_views = tuple(contrast_views)
        self.in_class_negatives = in_class_negatives
        self.consistency_weighted = consistency_weighted

    def __call__(self, step: AdaptationStep) -> dict[str, Tensor]:
        if not step.pixels:
            # Attached, so that every parameter has a gradient from the first iteration on (DDP
            # waits for them).
            zero = torch.stack([out.pixels.sum() for out in step.outputs.values()]).sum() * 0.0
            return {"loss_contrast": zero, "loss_consistency": zero}
        similarity = {
            name: self.prototypes.similarity(step.outputs[name].pixels) for name in step.pixels
        }
        contrast = [self._contrast(similarity, step.pixels, view) for view in self.contrast_views]
        # Halved when both views are on, so that lambda_1 keeps its meaning (section 4 of the
        # method's notes).
        return {
            "loss_contrast": self.contrast_weight * torch.stack(contrast).mean(),
            "loss_consistency": self.consistency_weight
            * self._consistency(similarity, step.pixels),
        }

    def _contrast(
        self, similarity: dict[str, Tensor], pixels: dict[str, PixelTargets], view: str
    ) -> Tensor:
        seen_in = "mixed" if view == "target" else view
        targets = pixels[seen_in]
        weight = targets.weight
        if view == "target":
            weight = torch.where(targets.from_source, 0.0, weight)
        return pixel_prototype_contrast(
            similarity[seen_in],
            targets.cluster,
            weight,
            self.temperature,
            self.prototypes.started,
            in_class_negatives=self.in_class_negatives,
        )

    def _consistency(
        self, similarity: dict[str, Tensor], pixels: dict[str, PixelTargets]
    ) -> Tensor:
        mixed = pixels["mixed"]
        weight = mixed.weight if self.consistency_weighted else torch.ones_like(mixed.weight)
        return prototype_consistency(
            similarity["mixed"], mixed.label, weight, self.temperature, self.prototypes.started
        )


class Criterion:
    """All losses of an iteration; which ones depends on what the step holds."""

    def __init__(
        self,
        *,
        num_classes: int,
        ignore_value: int,
        feature_distance_weight: float,
        feature_distance_classes: Sequence[int],
        feature_distance_min_ratio: float,
        prototype_criterion: PrototypeCriterion | None,
    ) -> None:
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.feature_distance_weight = feature_distance_weight
        self.feature_distance_classes = tuple(feature_distance_classes)
        self.feature_distance_min_ratio = feature_distance_min_ratio
        self.prototype_criterion = prototype_criterion

    def __call__(self, step: AdaptationStep) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is what is minimised."""
        losses = {}
        for (name, view), key in zip(step.views(), ("loss_sem_seg", "loss_sem_seg_mix")):
            losses[key] = pixel_cross_entropy(
                step.outputs[name].logits, view.label, view.weight, self.ignore_value
            )
        if step.reference_features is not None:
            losses["loss_feature_distance"] = self.feature_distance_weight * feature_distance(
                step.outputs["source"].features,
                step.reference_features,
                step.source.label,
                self.feature_distance_classes,
                self.num_classes,
                self.feature_distance_min_ratio,
                self.ignore_value,
            )
        if self.prototype_criterion is not None and step.mixed is not None:
            losses.update(self.prototype_criterion(step))
        return losses
