r"""Pixel-to-prototype losses.

Legend: B images, C classes, K prototypes a class, D embedding size, N pixels.

Both are cross-entropies over similarities / temperature, weighted per pixel and averaged over *all*
N pixels, as the segmentation losses are: a pixel that takes no part contributes 0 and still counts.
When nothing takes part, or N = 0, they are 0 and still attached to the graph, so that every rank
runs the same backward pass.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..prototypes.numerics import at_least_float32


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
    Returns:
        scalar >= 0, finite and with finite gradients for finite similarities.
    Raises:
        ValueError: ``temperature`` is not positive.
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

    .. math:: L = -\frac{1}{N} \sum_i w_i \log \frac{\exp(g(y_i, F_i) / \tau)}{\sum_c \exp(g(c, F_i)
    / \tau)},
        \quad g(c, F) = \max_k \mathrm{sim}(p_k^{(c)}, F)

    Source: MPCL, Eqs. (11), (12). The weights are ours; the printed formula has weights 1.

    Args:
        similarity: (N, C, K), the only input that receives gradients.
        label: (N,) int64 in [0, C]; C takes no part.
        weight: (N,) confidence, in [0, 1].
        temperature: tau > 0, in units of the similarity.
        started: (C,) bool; other classes are left out of the posterior, and their pixels take no
            part.
    Returns:
        scalar >= 0, finite and with finite gradients for finite similarities.
    Raises:
        ValueError: ``temperature`` is not positive.
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
