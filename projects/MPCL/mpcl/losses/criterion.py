"""From one iteration's views, outputs and assignments to its losses, Eq. (19). Pure: tensors in,
scalars out."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..prototypes.centroid import CentroidPrototypes
from ..structures.step import AdaptationStep, PixelTargets, ScaleView
from ..structures.view import CONTEXT, DETAIL, View, ViewOutputs
from .prototype import pixel_prototype_contrast, prototype_consistency
from .segmentation import feature_distance, segmentation_loss


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
        detail_weight: float = 0.0,
    ) -> None:
        """
        Args:
            temperature: tau.
            contrast_weight, consistency_weight: lambda_1 and lambda_2.
            contrast_views: some of ``source``, ``mixed``, ``target`` (the mixed view without its
                source pixels).
            in_class_negatives: whether siblings of the positive are negatives.
            consistency_weighted: whether confidence weighs the consistency.
            detail_weight: lambda_d of (18), where context and detail are both clustered.
        """
        self.prototypes = prototypes
        self.temperature = temperature
        self.contrast_weight = contrast_weight
        self.consistency_weight = consistency_weight
        self.contrast_views = tuple(contrast_views)
        self.in_class_negatives = in_class_negatives
        self.consistency_weighted = consistency_weighted
        self.detail_weight = detail_weight

    def __call__(self, step: AdaptationStep) -> dict[str, Tensor]:
        if not step.pixels:
            # Attached, so that every parameter has a gradient from the first iteration on (DDP
            # waits for them).
            embeddings = [s.embeddings for seen in step.scales().values() for s in seen.values()]
            zero = torch.stack([e.sum() for e in embeddings]).sum() * 0.0
            return {"loss_contrast": zero, "loss_consistency": zero}
        by_scale = {
            scale: self._losses_at(step.scales()[scale], pixels)
            for scale, pixels in step.pixels.items()
        }
        contrast, consistency = self._weigh(by_scale)
        return {
            "loss_contrast": self.contrast_weight * contrast,
            "loss_consistency": self.consistency_weight * consistency,
        }

    def _losses_at(
        self, seen: Mapping[str, ScaleView], pixels: Mapping[str, PixelTargets]
    ) -> Tensor:
        """(2,) contrast and consistency of one scale."""
        similarity = {name: self.prototypes.similarity(view.pixels) for name, view in seen.items()}
        contrast = [self._contrast(similarity, pixels, view) for view in self.contrast_views]
        # Halved when both views are on, so that lambda_1 keeps its meaning (section 4 of the
        # method's notes).
        mean = torch.stack(contrast).mean()
        return torch.stack([mean, self._consistency(similarity, pixels)])

    def _weigh(self, by_scale: Mapping[str, Tensor]) -> Tensor:
        if len(by_scale) == 1:
            (losses,) = by_scale.values()
            return losses
        context, detail = by_scale[CONTEXT], by_scale[DETAIL]
        return (1 - self.detail_weight) * context + self.detail_weight * detail

    def _contrast(
        self, similarity: Mapping[str, Tensor], pixels: Mapping[str, PixelTargets], view: str
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
        self, similarity: Mapping[str, Tensor], pixels: Mapping[str, PixelTargets]
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
        masked_weight: float = 1.0,
        detail_weight: float = 0.0,
    ) -> None:
        """
        Args:
            masked_weight: of the masked view's loss.
            detail_weight: lambda_d of a multi-resolution student, see :func:`segmentation_loss`.
        """
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.feature_distance_weight = feature_distance_weight
        self.feature_distance_classes = tuple(feature_distance_classes)
        self.feature_distance_min_ratio = feature_distance_min_ratio
        self.prototype_criterion = prototype_criterion
        self.masked_weight = masked_weight
        self.detail_weight = detail_weight

    def __call__(self, step: AdaptationStep) -> dict[str, Tensor]:
        """Weighted losses by name; their sum is what is minimised."""
        losses = {}
        for (name, view), key in zip(step.views(), ("loss_sem_seg", "loss_sem_seg_mix")):
            losses[key] = self._segmentation_loss(step.outputs[name], view)
        if step.reference_features is not None:
            losses["loss_feature_distance"] = self.feature_distance_weight * feature_distance(
                step.outputs["source"].features,
                step.reference_features,
                step.source.label,
                self.feature_distance_classes,
                self.num_classes,
                self.feature_distance_min_ratio,
                self.ignore_value,
                step.batch_label,
            )
        if self.prototype_criterion is not None and step.mixed is not None:
            losses.update(self.prototype_criterion(step))
        return losses

    def of_masked(self, outputs: ViewOutputs, view: View) -> dict[str, Tensor]:
        """The masked view's loss (MIC, Eq. 6), weighted as :meth:`__call__`'s are."""
        loss = self.masked_weight * self._segmentation_loss(outputs, view)
        return {"loss_sem_seg_masked": loss}

    def _segmentation_loss(self, outputs: ViewOutputs, view: View) -> Tensor:
        return segmentation_loss(
            outputs, view.label, view.weight, self.ignore_value, self.detail_weight
        )
