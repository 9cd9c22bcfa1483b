"""The two ends of a training forward: a view that goes into the student, and what the student says
about it.

B images, C classes, D embedding size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

# The scales at which a student embeds a view: the whole of it (at half size, if there are several),
# and its detail crop.
CONTEXT, DETAIL = "context", "detail"


class Box(NamedTuple):
    """Rows [top, bottom) and columns [left, right) of an image, in pixels or in grid cells."""

    top: int
    left: int
    bottom: int
    right: int

    def crop(self, grid: Tensor) -> Tensor:
        """The inside of the box of (..., H, W); no copy."""
        return grid[..., self.top : self.bottom, self.left : self.right]

    def in_cells(self, size: int) -> "Box":
        """The same box on a grid whose cells are ``size`` pixels wide.

        Raises:
            ValueError: a side of the box does not fall between two cells.
        """
        if any(side % size for side in self):
            raise ValueError(f"{self} does not lie on a grid of {size} pixels")
        return Box(*(side // size for side in self))


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

    def crop(self, box: Box) -> "View":
        """The part of all images that a box in pixels shows; no copy."""
        return self._each(box.crop)

    def split(self, parts: int) -> list["View"]:
        """Its images in ``parts`` equal views, one after the other; no copy.

        Raises:
            ValueError: the images do not divide.
        """
        if len(self.images) % parts:
            raise ValueError(
                f"{len(self.images)} images do not make {parts} equal parts (SOLVER.ACCUMULATE)"
            )
        size = len(self.images) // parts
        return [
            self._each(itemgetter(slice(begin, begin + size)))
            for begin in range(0, len(self.images), size)
        ]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "View":
        fields = {name: value for name, value in vars(self).items() if value is not None}
        return replace(self, **{name: change(value) for name, value in fields.items()})


@dataclass
class DetailOutputs:
    """What a multi-resolution student says about its high-resolution crop of a view.

    Attributes:
        box: the crop, in pixels of the view; one for all images.
        logits: (B, C, h, w) of the crop alone, before fusion.
        embeddings: (B, D, h, w) float32; None without a prototype head.
    """

    box: Box
    logits: Tensor
    embeddings: Tensor | None


@dataclass
class ViewOutputs:
    """What the student says about one view.

    Attributes:
        logits: (B, C, h, w) class logits at stride 4.
        embeddings: (B, D, h, w) float32 normalised embeddings at stride 4 (of a multi-resolution
            student: of its half-size context, at stride 8); None without a prototype head.
        features: (B, C4, h/8, w/8) deepest encoder features (half of that for the context).
        detail: the high-resolution crop of a multi-resolution student; None = there is one scale.
    """

    logits: Tensor
    embeddings: Tensor | None
    features: Tensor
    detail: DetailOutputs | None = None


def at_cell_centres(pixel_map: Tensor, size: Sequence[int]) -> Tensor:
    """Of each cell of a grid ``size`` (h, w), the pixel next to its centre in a (B, H, W) map.

    There, because that is where the classifier's scores of a cell belong (they are enlarged without
    aligned corners). ``mode="nearest"`` takes the cell's first pixel: at stride 4 every label would
    lie 1.5 pixels off instead of half a pixel. docs/RESULTS.md has what that costs.
    """
    # float32 holds labels exactly.
    small = F.interpolate(pixel_map[:, None].float(), size=tuple(size), mode="nearest-exact")
    return small[:, 0].to(pixel_map.dtype)
