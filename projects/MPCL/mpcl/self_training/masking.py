"""Hides random blocks of an image, so that the rest of it has to tell what they show (MIC).

Legend: B images, (H, W) pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import View

IMAGES = ("target", "pair")


@dataclass(kw_only=True)
class Masking:
    """The masked view of MIC: labels and weights are as if nothing were hidden.

    Attributes:
        block_size: side of a hidden block, pixels.
        ratio: share of hidden blocks.
        images: ``target`` = all target images; ``pair`` = the first image of each domain.
        augment: whether the images are strongly augmented before they are masked.
    """

    block_size: int
    ratio: float
    images: str
    augment: bool

    @classmethod
    def from_config(cls, cfg: Any) -> "Masking | None":
        """None where the masked view weighs nothing."""
        masked = cfg.SELF_TRAINING.MASKED
        if masked.WEIGHT == 0:
            return None
        return cls(
            block_size=masked.BLOCK_SIZE,
            ratio=masked.RATIO,
            images=masked.IMAGES,
            augment=masked.AUGMENT,
        )

    def __call__(self, source: View, target: View, augment: Callable[[Tensor], Tensor]) -> View:
        """
        Args:
            source, target: both labelled, the target by the teacher.
            augment: the strong augmentation of a batch of images.
        """
        view = target
        if self.images == "pair":
            view = source.join(target, lambda s, t: torch.cat([s[:1], t[:1]]))
        images = augment(view.images) if self.augment else view.images
        hidden = hide_blocks(images, block_size=self.block_size, ratio=self.ratio)
        return replace(view, images=hidden)


@torch.no_grad()
def hide_blocks(images: Tensor, *, block_size: int, ratio: float) -> Tensor:
    """Sets each block of a regular grid to 0, independently, with probability ``ratio``.

    In normalised images 0 is the mean colour. The grid has round(H / block_size) by
    round(W / block_size) blocks, stretched to the image where sizes do not divide. The host never
    waits for the device.

    Source: Hoyer et al., MIC (CVPR 2023), arXiv:2212.01322, Eq. (4) and (5).

    Args:
        images: (B, 3, H, W) normalised; not changed.
        block_size: side of a block, pixels.
        ratio: in [0, 1], share of *hidden* blocks.
    Returns: a new tensor of the same shape.
    Raises: ValueError: ``ratio`` is outside [0, 1], or a block is larger than twice the image.
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"ratio must be in [0, 1], got {ratio}")
    size = images.shape[-2:]
    rows, columns = (round(side / block_size) for side in size)
    if not rows or not columns:
        raise ValueError(f"block_size {block_size} leaves no block in images of {tuple(size)}")
    draw = torch.rand(len(images), 1, rows, columns, device=images.device)
    visible = (draw >= ratio).to(images.dtype)
    return images * F.interpolate(visible, size=size, mode="nearest")
