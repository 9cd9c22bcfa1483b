"""From the network's stride-4 logits to logits of whole images.

Legend: B images, C classes, (H, W) image, (h, w) window.

Neither function needs gradients; call them under ``torch.inference_mode()``. Logits are averaged,
not probabilities: softmax and argmax come once, after the last resize.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..structures import Box

Predict = Callable[[Tensor], Tensor]
"""Images (B, 3, h, w) -> logits (B, C, h/4, w/4), or of any other stride."""


def whole_image(predict: Predict, images: Tensor, *, divisor: int = 1) -> Tensor:
    """Images (B, 3, H, W) in one forward -> logits (B, C, H, W), bilinear, at least float32.

    Args:
        divisor: the network's sizes must be multiples of it; see :func:`sliding_window`.
    """
    size = _size(images)
    return sliding_window(predict, images, crop=size, stride=size, divisor=divisor)


def sliding_window(
    predict: Predict,
    images: Tensor,
    *,
    crop: tuple[int, int],
    stride: tuple[int, int],
    batch_size: int | None = None,
    divisor: int = 1,
    cell: int = 1,
) -> Tensor:
    """Averages the logits of overlapping windows; all windows have one size and cover the image.

    The last window of each direction is shifted back inside the image; an image smaller than
    ``crop`` is one window. Windows are batched across windows and images: window 0 of all images,
    then window 1, ... Beside one batch of stride-4 logits, memory holds the result and the resized
    logits of a single window.

    Source: HRDA (arXiv:2204.13132), test procedure.

    Args:
        predict: the network; sees batches of at most ``batch_size`` windows of min(crop, image)
            size.
        images: (B, 3, H, W).
        crop: (height, width) of a window, pixels.
        stride: (vertical, horizontal) step between windows, pixels, at most ``crop``.
        batch_size: windows in one forward, None = all; any value gives the same result in
            evaluation mode.
        divisor: windows are padded below and to the right with 0 (the mean colour) to a multiple of
            it before the network sees them.
        cell: pixels to a side of a cell of the result; all windows must lie on its grid.
    Returns: (B, C, H/cell, W/cell) logits, at least float32: each the mean over the windows that
        contain it.
    Raises: ValueError: ``crop``, ``stride`` or ``batch_size`` is not positive, ``stride`` leaves
        gaps, or a window does not lie on the grid of ``cell``.
    """
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    height, width = _size(images)
    rows = _spans(height, crop[0], stride[0])
    columns = _spans(width, crop[1], stride[1])
    boxes = [Box(y.start, x.start, y.stop, x.stop) for y in rows for x in columns]
    windows = [(image, box) for box in boxes for image in range(len(images))]
    batch_size = batch_size or len(windows)
    total = None
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        padded = _pad(torch.stack([box.crop(images[image]) for image, box in batch]), divisor)
        logits = predict(padded)
        if total is None:
            shape = (len(images), logits.shape[1], height // cell, width // cell)
            total = logits.new_zeros(shape, dtype=_precise(logits))
        for (image, box), window in zip(batch, logits):
            window = _resize(window[None], [side // cell for side in _size(padded)])[0]
            inside = box.in_cells(cell).crop(total[image])
            inside += window[:, : inside.shape[1], : inside.shape[2]]
    if total is None:
        raise ValueError("images must hold at least one image, got none")
    # The windows form a grid, so a pixel's count is that of its row times that of its column.
    down, along = total.new_zeros(height), total.new_zeros(width)
    for hits, spans in ((down, rows), (along, columns)):
        for span in spans:
            hits[span] += 1
    return total.div_(down[::cell].outer(along[::cell]))


def _size(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _pad(images: Tensor, divisor: int) -> Tensor:
    below, right = (-side % divisor for side in _size(images))
    return F.pad(images, (0, right, 0, below)) if below or right else images


def _spans(size: int, crop: int, stride: int) -> list[slice]:
    """Windows along one direction, ``stride`` apart; the last one ends where the image ends."""
    if not 0 < stride <= crop:
        raise ValueError(f"stride must lie in [1, crop], got stride {stride} and crop {crop}")
    crop = min(crop, size)
    steps = -(-(size - crop) // stride)  # rounded up
    starts = [min(step * stride, size - crop) for step in range(steps + 1)]
    return [slice(start, start + crop) for start in starts]


def _precise(logits: Tensor) -> torch.dtype:
    """Half-precision logits are resized and averaged in float32."""
    return torch.promote_types(logits.dtype, torch.float32)


def _resize(logits: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(
        logits.to(_precise(logits)), size=list(size), mode="bilinear", align_corners=False
    )
