r"""Pixel-to-prototype losses.

Legend: B images, C classes, K prototypes a class, D embedding size, N pixels.

Both are cross-entropies over similarities / temperature, weighted per pixel and averaged over *all*
N pixels, as the segmentation losses are: a pixel that takes no part contributes 0 and still counts.
When nothing takes part, or N = 0, they are 0 and still attached to the graph, so that every rank
runs the same backward pass.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..prototypes.base import Prototypes
from ..prototypes.numerics import at_least_float32
from ..structures.step import CONTEXT, DETAIL, Pixels

VIEWS = ("source", "mixed", "target")


@dataclass(kw_only=True)
class PrototypeLosses:
    """Contrast (15), (17) and consistency (12) against the prototypes, weighted and summed over the
    scales as in (18).

    Attributes:
        prototypes: of any type.
        temperature: tau.
        contrast_weight, consistency_weight: lambda_1 and lambda_2.
        contrast_views: some of ``source``, ``mixed``, ``target`` (the mixed view without its source
            pixels); each enters with the whole ``contrast_weight``.
        in_class_negatives: whether siblings of the positive are negatives.
        consistency_weighted: whether confidence weighs the consistency.
        detail_weight: lambda_d of (18), where context and detail are both clustered.
    """

    prototypes: Prototypes
    temperature: float
    contrast_weight: float
    consistency_weight: float
    contrast_views: Sequence[str]
    in_class_negatives: bool
    consistency_weighted: bool
    detail_weight: float

    @classmethod
    def from_config(cls, cfg: Any, head: Any) -> "PrototypeLosses | None":
        """Of a student with this prototype head; None without one."""
        if head is None:
            return None
        proto = cfg.PROTOTYPES
        return cls(
            prototypes=head.prototypes,
            temperature=proto.TEMPERATURE,
            contrast_weight=proto.CONTRAST_WEIGHT,
            consistency_weight=proto.CONSISTENCY_WEIGHT,
            contrast_views=tuple(proto.CONTRAST_VIEWS),
            in_class_negatives=proto.IN_CLASS_NEGATIVES,
            consistency_weighted=proto.CONSISTENCY_WEIGHTED,
            detail_weight=cfg.MODEL.HRDA.DETAIL_WEIGHT,
        )

    def __call__(self, pixels: Mapping[str, Mapping[str, Pixels]]) -> dict[str, Tensor]:
        """Both losses of the pixels by scale and view; 0 and attached where none has a cluster, so
        that every parameter has a gradient from the first iteration on (DDP waits for them)."""
        by_scale = {scale: self._of_scale(views) for scale, views in pixels.items()}
        contrast, consistency = by_scale[CONTEXT]
        if len(by_scale) > 1:
            contrast, consistency = (
                (1 - self.detail_weight) * context + self.detail_weight * detail  # (18)
                for context, detail in zip(by_scale[CONTEXT], by_scale[DETAIL])
            )
        return {
            "loss_contrast": self.contrast_weight * contrast,
            "loss_consistency": self.consistency_weight * consistency,
        }

    def _of_scale(self, views: Mapping[str, Pixels]) -> tuple[Tensor, Tensor]:
        """Contrast and consistency of one scale, unweighted."""
        mixed = views["mixed"]
        compared = {  # whose pixels, weighted how
            "source": ("source", views["source"].weight),
            "mixed": ("mixed", mixed.weight),
            "target": ("mixed", mixed.weight.masked_fill(mixed.from_source, 0)),
        }
        chosen = [compared[name] for name in self.contrast_views]
        similarity = {
            name: self.prototypes.similarity(views[name].rows)
            for name in dict.fromkeys(["mixed", *(name for name, _ in chosen)])
        }
        contrasts = [
            pixel_prototype_contrast(
                similarity[name],
                views[name].cluster.flatten(),
                weight.flatten(),
                self.temperature,
                self.prototypes.started,
                in_class_negatives=self.in_class_negatives,
            )
            for name, weight in chosen
        ]
        # Unweighted, margins still take no part; nor does a target without a confident pixel.
        weight = mixed.weight if self.consistency_weighted else (mixed.weight > 0).float()
        consistency = prototype_consistency(
            similarity["mixed"],
            mixed.label.flatten(),
            weight.flatten(),
            self.temperature,
            self.prototypes.started,
        )
        return torch.stack(contrasts).sum(), consistency


def pixel_prototype_contrast(
    similarity: Tensor,
    cluster: Tensor,
    weight: Tensor,
    temperature: float,
    started: Tensor,
    in_class_negatives: bool = True,
) -> Tensor:
    r"""Cross-entropy of each pixel over the prototypes of all started classes, its own prototype
    being the target.

    .. math:: L = -\frac{1}{N} \sum_i w_i \log
        \frac{\exp(\mathrm{sim}(F_i, p^+) / \tau)}{\sum_{c,k} \exp(\mathrm{sim}(F_i, p_k^{(c)}) /
        \tau)}

    Source: MPCL, Eqs. (15) with weights 1 and (17).

    Args:
        similarity: (N, C, K), the only input that receives gradients.
        cluster: (N,) int64 in [0, C*K], class * K + k; C*K takes no part.
        weight: (N,) confidence, in [0, 1].
        temperature: tau > 0, in units of the similarity.
        started: (C,) bool; prototypes of other classes are no negatives, and their pixels take no
            part.
        in_class_negatives: False leaves the siblings of the target out of the denominator (Table
            VI).
    Returns: scalar >= 0, finite and with finite gradients for finite similarities.
    Raises: ValueError: ``temperature`` is not positive.
    """
    _check_temperature(temperature)
    _, num_classes, num_prototypes = similarity.shape
    logits = _logits(similarity, temperature, started.view(1, -1, 1)).flatten(1)
    none = num_classes * num_prototypes
    has_prototypes = torch.cat([started, started.new_zeros(1)])
    target = torch.where(has_prototypes[cluster // num_prototypes], cluster, none)
    if not in_class_negatives:
        prototype = torch.arange(none, device=cluster.device)
        target_column = target.unsqueeze(1)
        sibling = (prototype // num_prototypes == target_column // num_prototypes) & (
            prototype != target_column
        )
        logits = logits.masked_fill(sibling, torch.finfo(logits.dtype).min)
    return _weighted_mean(
        F.cross_entropy(logits, target, ignore_index=none, reduction="none"), weight
    )


def prototype_consistency(
    similarity: Tensor, label: Tensor, weight: Tensor, temperature: float, started: Tensor
) -> Tensor:
    r"""Cross-entropy of each pixel's label under the class posterior of its nearest prototypes.

    .. math:: L = -\frac{1}{N} \sum_i w_i
        \log \frac{\exp(g(y_i, F_i) / \tau)}{\sum_c \exp(g(c, F_i) / \tau)},
        \quad g(c, F) = \max_k \mathrm{sim}(p_k^{(c)}, F)

    Source: MPCL, Eqs. (11), (12). The weights are ours: in print none can be made out.

    Args:
        similarity: (N, C, K), the only input that receives gradients.
        label: (N,) int64 in [0, C]; C takes no part.
        weight: (N,) confidence, in [0, 1].
        temperature: tau > 0, in units of the similarity.
        started: (C,) bool; other classes are left out of the posterior, and their pixels take no
            part.
    Returns: scalar >= 0, finite and with finite gradients for finite similarities.
    Raises: ValueError: ``temperature`` is not positive.
    """
    _check_temperature(temperature)
    num_classes = similarity.shape[1]
    logits = _logits(similarity.amax(2), temperature, started)
    has_prototypes = torch.cat([started, started.new_zeros(1)])
    target = torch.where(has_prototypes[label], label, num_classes)
    return _weighted_mean(
        F.cross_entropy(logits, target, ignore_index=num_classes, reduction="none"), weight
    )


def _logits(similarity: Tensor, temperature: float, started: Tensor) -> Tensor:
    """similarity / temperature; for classes that have not started, a number far below all others.

    A finite one, half the lowest: with -inf a batch before any class has started would be NaN.
    """
    similarity = at_least_float32(similarity)
    penalty = (~started).to(similarity.dtype) * (torch.finfo(similarity.dtype).min / 2)
    return torch.add(penalty, similarity, alpha=1 / temperature)


def _weighted_mean(loss: Tensor, weight: Tensor) -> Tensor:
    return (loss * weight).sum() / max(1, loss.shape[0])


def _check_temperature(temperature: float) -> None:
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, expected a positive number")
