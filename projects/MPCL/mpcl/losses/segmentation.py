"""Pixel-weighted cross-entropy of the baselines.

Legend: B images, C classes, (h, w) logit grid, (H, W) pixels.
"""

import torch.nn.functional as F
from torch import Tensor

from ..structures import Outputs, View
from ..utils.ignore_label import IGNORE_LABEL


def pixel_cross_entropy(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    r"""Weighted cross-entropy, averaged over *all* pixels.

    .. math::
        L = -\frac{1}{BHW} \sum_{b,i} w_{b,i} [y_{b,i} \ne \mathrm{ignore}] \log p_{b,i,y_{b,i}}

    Ignored and zero-weighted pixels stay in the denominator: weights scale the loss, a batch with
    few labels weighs little. (``torch``'s own mean divides by the weights of the valid pixels.)
    Logits are upsampled bilinearly to the labels, not the labels sampled down. Deterministic on
    CUDA where ``torch.use_deterministic_algorithms`` is on.

    Source: DAFormer, arXiv:2111.14887, Eq. (1), (2) and (5).

    Args:
        logits: (B, C, h, w), any floating-point type; computed on in float32; receives the
            gradient.
        label: (B, H, W) int64 in [0, C) or IGNORE_LABEL.
        weight: (B, H, W) non-negative, without gradient.
    Returns: Scalar float32; 0 and still attached to the graph where every pixel is ignored.
    Raises: ValueError: the shapes do not belong together.
    """
    if logits.dim() != 4 or label.dim() != 3 or len(logits) != len(label):
        shapes = (tuple(logits.shape), tuple(label.shape))
        raise ValueError(f"logits (B, C, h, w) and label (B, H, W) expected, got shapes {shapes}")
    if weight.shape != label.shape:
        shapes = (tuple(weight.shape), tuple(label.shape))
        raise ValueError(f"weight must have the shape of label, got {shapes[0]} and {shapes[1]}")
    logits = F.interpolate(
        logits.float(), size=label.shape[-2:], mode="bilinear", align_corners=False
    )
    # Unreduced: on CUDA only the loss's own sum and mean over (B, H, W) are not deterministic.
    loss = F.cross_entropy(logits, label, ignore_index=IGNORE_LABEL, reduction="none")
    return (loss * weight.detach().float()).mean()


def segmentation_loss(outputs: Outputs, view: View, detail_weight: float = 0.0) -> Tensor:
    r"""Cross-entropy of one view; of a multi-resolution student, of both its predictions.

    .. math:: L = (1 - \lambda_d) L_\mathrm{ce}(\mathrm{fused})
        + \lambda_d L_\mathrm{ce}(\mathrm{detail})

    The detail term is a mean over the pixels of the detail crop. Without one, it is
    :func:`pixel_cross_entropy`.

    Source: HRDA, arXiv:2204.13132, Eq. (12).

    Args:
        outputs: of the student.
        view: its labels and weights.
        detail_weight: lambda_d in [0, 1].
    """
    loss = pixel_cross_entropy(outputs.logits, view.label, view.weight)
    if outputs.detail is None:
        return loss
    part = view.crop(outputs.detail.box)
    detail = pixel_cross_entropy(outputs.detail.logits, part.label, part.weight)
    return (1 - detail_weight) * loss + detail_weight * detail
