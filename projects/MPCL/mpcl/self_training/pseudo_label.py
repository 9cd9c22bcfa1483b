"""Teacher logits -> hard labels, and a confidence weight for each batch or image.

Legend: B images, C classes, (h, w) logit grid, (H, W) pixels.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import View
from ..utils.distributed import sum_over_ranks

SCOPES = ("batch", "image")


@torch.no_grad()
def most_probable(logits: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Probability (B, H, W) float32 in [1/C, 1] and label (B, H, W) int64 of the best class.

    Args:
        logits: (B, C, h, w), any floating-point type; upsampled before the softmax.
        size: (H, W) of the labels.
    """
    upsampled = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    probability, label = upsampled.softmax(dim=1).max(dim=1)
    return probability, label


@dataclass(kw_only=True)
class PseudoLabels:
    r"""Labels every pixel of target images and weighs all of them by the share of confident ones.

    .. math:: q = \frac{1}{BHW} \sum_{b,i} [\max_c p_{b,i,c} \ge \theta]

    Unsure pixels are kept: the share scales the target's influence as a whole. Margins, whose
    weight stays 0, count in it as published; padding and pixels without data, which published
    images have none of, do not. With several ranks a batch is what all of them hold, so that N
    ranks equal one large batch; all must call.

    Source: MPCL Eq. (16); DAFormer, arXiv:2111.14887 (and DACS, arXiv:2007.08702, before it).

    Attributes:
        threshold: theta in [0, 1], inclusive.
        scope: "batch": one share for the batch; "image": one for each image.
    Raises: ValueError: ``threshold`` is outside [0, 1], or ``scope`` is unknown.
    """

    threshold: float = 0.968
    scope: str = "batch"

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ValueError(f"threshold must be in [0, 1], got {self.threshold}")
        if self.scope not in SCOPES:
            raise ValueError(f"scope must be one of {SCOPES}, got {self.scope!r}")

    @classmethod
    def from_config(cls, cfg: Any) -> "PseudoLabels":
        st = cfg.SELF_TRAINING
        return cls(threshold=st.CONFIDENCE_THRESHOLD, scope=st.CONFIDENCE)

    @torch.no_grad()
    def __call__(self, logits: Tensor, target: View) -> tuple[View, Tensor]:
        """
        Args:
            logits: (B, C, h, w) of the teacher, any floating-point type; computed on in float32.
            target: unlabelled; its weight is 0 where pseudo-labels shall weigh nothing, else 1,
            and its trusted pixels are those that show something.
        Returns: the target with a label of every pixel, however unsure, the confident share as its
            weight, and as trusted pixels those of weight 1 that reach the threshold; and the share
            of all pixels of the batch that show something, whatever their weight, that reach it, a
            scalar in [0, 1].
        Raises: ValueError: ``logits`` has not four dimensions.
        """
        if logits.dim() != 4:
            raise ValueError(f"logits must be (B, C, h, w), got {tuple(logits.shape)}")
        height, width = target.images.shape[-2:]
        probability, label = most_probable(logits, (height, width))
        reached = probability >= self.threshold
        shown = target.trusted
        counts = torch.stack([(reached & shown).sum((1, 2)), shown.sum((1, 2))]).float()  # (2, B)
        confident, all_shown = sum_over_ranks(counts.sum(1))
        confident_fraction = confident / all_shown.clamp_min(1)
        share = counts[0] / counts[1].clamp_min(1)
        weight = confident_fraction if self.scope == "batch" else share[:, None, None]
        weight = weight * target.weight
        view = replace(target, label=label, weight=weight, trusted=reached & (target.weight > 0))
        return view, confident_fraction
