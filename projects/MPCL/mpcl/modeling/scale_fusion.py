"""Context and detail of HRDA: where the detail crop lies, and how both predictions become one.

Legend: B images, C classes, (H, W) pixels. The context is seen at half size, so that one cell of
its stride-4 logits covers 8x8 pixels; a cell of the detail covers 4x4.

Source: Hoyer et al., HRDA (ECCV 2022), arXiv:2204.13132.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures.view import Box

CONTEXT_CELL = 8  # pixels
DETAIL_CELL = 4


def context_image(images: Tensor) -> Tensor:
    """(B, 3, H, W) at half size, bilinear without antialiasing: the mean of 2x2 pixels."""
    return F.interpolate(images, scale_factor=0.5, mode="bilinear", align_corners=False)


def sample_detail_box(size: tuple[int, int], detail: tuple[int, int]) -> Box:
    """Draws the detail crop of an image, on the grid of the context's cells.

    Uniform over the offsets 0, 8, ... below H - h (as in HRDA, H - h itself is never drawn); the
    whole image where it is not larger than the crop. Draws from torch's default CPU generator: no
    device is waited for.

    Args:
        size: (H, W) of the image, pixels.
        detail: (h, w) of the crop, pixels.
    Raises: ValueError: a side of the image or of the crop is no multiple of 8.
    """
    if any(side % CONTEXT_CELL for side in (*size, *detail)):
        raise ValueError(f"sizes must be multiples of {CONTEXT_CELL}, got {size} and {detail}")
    steps = [max((whole - part + 1) // CONTEXT_CELL, 1) for whole, part in zip(size, detail)]
    top, left = (
        CONTEXT_CELL * min(int(u * n), n - 1) for u, n in zip(torch.rand(2).tolist(), steps)
    )
    height, width = (min(pair) for pair in zip(size, detail))
    return Box(top, left, top + height, left + width)


def fuse_scales(
    context: Tensor, detail: Tensor, attention: Tensor, box: Box | None = None
) -> Tensor:
    r"""Detail logits where the attention asks for them, context logits elsewhere.

    .. math:: S = \zeta(A) \odot S_d + \zeta((1 - A) \odot S_c), \quad A = 0 \text{ off the box}

    zeta upsamples bilinearly by 2. The attention is masked *before* it, so that a band one cell
    wide is blended at the border of the box.

    Source: HRDA, Eq. (7) to (9), and its code for the order of masking and upsampling.

    Args:
        context: (B, C, H/8, W/8) logits of the half-size image.
        detail: (B, C, h/4, w/4) logits of the box; of the whole image where there is none.
        attention: (B, C, H/8, W/8) in [0, 1].
        box: of the detail, in pixels; None = all of the image.
    Returns: (B, C, H/4, W/4).
    """
    if box is not None:
        cells = box.in_cells(CONTEXT_CELL)
        attention = _place(cells.crop(attention), cells, attention)
    upsampled = _double((1 - attention) * context)
    if box is not None:
        detail = _place(detail, box.in_cells(DETAIL_CELL), upsampled)
    return _double(attention) * detail + upsampled


def _place(part: Tensor, box: Box, canvas: Tensor) -> Tensor:
    """``part`` at ``box`` of a map of 0 as large as ``canvas``."""
    height, width = canvas.shape[-2:]
    return F.pad(part, (box.left, width - box.right, box.top, height - box.bottom))


def _double(grid: Tensor) -> Tensor:
    # As CUDA's autocast has it; where torch is to be deterministic, that would leave out the cast.
    return F.interpolate(grid.float(), scale_factor=2, mode="bilinear", align_corners=False)
