"""A batch of images with what the losses need to know of each pixel.

Legend: B images, (H, W) pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.ignore_label import IGNORE_LABEL


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

        Raises: ValueError: a side of the box does not fall between two cells.
        """
        if any(side % size for side in self):
            raise ValueError(f"{self} does not lie on a grid of {size} pixels")
        return Box(*(side // size for side in self))


@dataclass
class View:
    """Images of one kind: source, target, mixed or masked.

    Attributes:
        images: (B, 3, H, W) normalised.
        label: (B, H, W) int64 in [0, C), or IGNORE_LABEL: ground truth where the pixel is the
            source's, else the teacher's pseudo-label.
        weight: (B, H, W) float32 in [0, 1], of each pixel's loss: 1 for ground truth, the teacher's
            confidence for pseudo-labels, 0 in their margins. Of an unlabelled target: 1 where a
            pseudo-label may weigh anything.
        trusted: (B, H, W) bool, pixels whose label may move prototypes: ground truth, or a
            confident pseudo-label outside the margins. Of an unlabelled target: those that show
            something, no padding.
        from_source: (B, H, W) bool, pixels that show the source domain.
    """

    images: Tensor
    label: Tensor
    weight: Tensor
    trusted: Tensor
    from_source: Tensor

    @classmethod
    def of_source(cls, images: Tensor, label: Tensor) -> "View":
        """Images with their ground truth, all of which is trusted."""
        everywhere = torch.ones_like(label, dtype=torch.bool)
        return cls(images, label, everywhere.float(), label != IGNORE_LABEL, everywhere)

    @classmethod
    def of_target(cls, images: Tensor, shown: Tensor, valid: Tensor) -> "View":
        """Images whose labels nobody knows yet.

        Args:
            shown: (B, H, W) bool, False where there is no image: padding, pixels without data.
            valid: (B, H, W) bool, False there and where a pseudo-label shall weigh nothing.
        """
        label = torch.full_like(valid, IGNORE_LABEL, dtype=torch.int64)
        return cls(images, label, valid.float(), shown, torch.zeros_like(valid))

    def crop(self, box: Box) -> "View":
        """The part of all images that a box in pixels shows; no copy."""
        return self.each(box.crop)

    def each(self, change: Callable[[Tensor], Tensor]) -> "View":
        """A view of the changed tensors."""
        return replace(self, **{name: change(value) for name, value in vars(self).items()})

    def join(self, other: "View", join: Callable[[Tensor, Tensor], Tensor]) -> "View":
        """A view made of this one's and the other's tensors, two by two."""
        return View(**{key: join(mine, vars(other)[key]) for key, mine in vars(self).items()})


def at_cell_centres(pixel_map: Tensor, size: Sequence[int]) -> Tensor:
    """Of each cell of a grid ``size`` (h, w), the pixel next to its centre in a (B, H, W) map.

    There, because that is where the classifier's scores of a cell belong (they are enlarged without
    aligned corners). ``mode="nearest"`` takes the cell's first pixel: at stride 4 every label would
    lie 1.5 pixels off instead of half a pixel.
    """
    # float32 holds labels exactly.
    small = F.interpolate(pixel_map[:, None].float(), size=tuple(size), mode="nearest-exact")
    return small[:, 0].to(pixel_map.dtype)
