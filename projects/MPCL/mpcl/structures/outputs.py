"""What the student says about a view.

Legend: B images, C classes, D embedding size.
"""

from dataclasses import dataclass

from torch import Tensor

from .view import Box


@dataclass
class Detail:
    """What a multi-resolution student says about its high-resolution crop of a view.

    Attributes:
        box: the crop, in pixels of the view; one for all images.
        logits: (B, C, h, w) of the crop alone, before fusion.
        embeddings: (B, D, h, w) float32; None without a prototype head.
        fused: (B, F, h, w) features that the classifier and a shared prototype head read.
    """

    box: Box
    logits: Tensor
    embeddings: Tensor | None
    fused: Tensor


@dataclass
class Outputs:
    """What the student says about one view.

    Attributes:
        logits: (B, C, h, w) class logits at stride 4.
        embeddings: (B, D, h, w) float32 normalised embeddings at stride 4 (of a multi-resolution
            student: of its half-size context, at stride 8); None without a prototype head.
        features: (B, C4, h/8, w/8) deepest encoder features (half of that for the context).
        fused: (B, F, h, w) features that the classifier and a shared prototype head read.
        detail: the high-resolution crop of a multi-resolution student; None = there is one scale.
    """

    logits: Tensor
    embeddings: Tensor | None
    features: Tensor
    fused: Tensor
    detail: Detail | None = None
