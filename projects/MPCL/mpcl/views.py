"""The two ends of a training forward: a view that goes into the student, and what the student says
about it.

B images, C classes, D embedding size.
"""

from dataclasses import dataclass

from torch import Tensor


@dataclass
class View:
    """A batch of images of one kind (source, mixed, ...) with what the losses need to know.

    Attributes:
        images: (B, 3, H, W) normalised.
        label: (B, H, W) int64, ignore value included.
        weight: (B, H, W) float32 weight of each pixel's loss; None = 1 everywhere.
        trusted: (B, H, W) bool, pixels whose label may move prototypes: ground truth, or a
            confident pseudo-label.
        from_source: (B, H, W) bool, pixels that show the source domain; None = all of them.
    """

    images: Tensor
    label: Tensor
    weight: Tensor | None
    trusted: Tensor
    from_source: Tensor | None = None


@dataclass
class ViewOutputs:
    """What the student says about one view.

    Attributes:
        logits: (B, C, h, w) class logits at stride 4.
        embeddings: (B, D, h, w) float32 normalised embeddings at stride 4; None without a prototype
            head.
        features: (B, C4, h/8, w/8) deepest encoder features.
    """

    logits: Tensor
    embeddings: Tensor | None
    features: Tensor

    @property
    def pixels(self) -> Tensor:
        """(B*h*w, D) embeddings in (B, h, w) order.

        Raises:
            ValueError: the student has no prototype head.
        """
        if self.embeddings is None:
            raise ValueError("There are no embeddings: the student has no prototype head")
        return self.embeddings.permute(0, 2, 3, 1).flatten(0, 2)
