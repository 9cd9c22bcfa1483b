"""From the network's stride-4 logits to logits of whole images.

Legend: B images, C classes, (H, W) image, (h, w) window.

Neither function needs gradients; call them under ``torch.inference_mode()``. Logits are averaged,
not probabilities: softmax and argmax come once, after the last resize.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Predict = Callable[[Tensor], Tensor]
"""Images (B, 3, h, w) -> logits (B, C, h/4, w/4), or of any other stride."""


def whole_image(predict: Predict, images: Tensor) -> Tensor:
    """Images (B, 3, H, W) in one forward -> logits (B, C, H, W), bilinear, at least float32."""
    return _resize(predict(images), images.shape[2:])


def sliding_window(
    predict: Predict,
    images: Tensor,
    *,
    crop: tuple[int, int],
    stride: tuple[int, int],
    batch_size: int,
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
        batch_size: windows in one forward; any value gives the same result in evaluation mode.

    Returns:
        (B, C, H, W) logits, at least float32: each pixel the mean over the windows that contain it.

    Raises:
        ValueError: ``crop``, ``stride`` or ``batch_size`` is not positive, or ``stride`` leaves
            gaps.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be positive, got {batch_size}")
    height, width = images.shape[2:]
    rows = _spans(height, crop[0], stride[0])
    columns = _spans(width, crop[1], stride[1])
    windows = [(image, y, x) for y in rows for x in columns for image in range(len(images))]
    total = None
    for start in range(0, len(windows), batch_size):
        batch = windows[start : start + batch_size]
        logits = predict(torch.stack([images[image, :, y, x] for image, y, x in batch]))
        if total is None:
            total = logits.new_zeros(
                (len(images), logits.shape[1], height, width), dtype=_precise(logits)
            )
        for (image, y, x), window in zip(batch, logits):
            total[image, :, y, x] += _resize(window[None], (y.stop - y.start, x.stop - x.start))[0]
    if total is None:
        raise ValueError("images must hold at least one image, got none")
    # The windows form a grid, so a pixel's count is that of its row times that of its column.
    return total.div_(_hits(rows, height).outer(_hits(columns, width)).to(total))


def _spans(size: int, crop: int, stride: int) -> list[slice]:
    """Windows along one direction, ``stride`` apart; the last one ends where the image ends."""
    if not 0 < stride <= crop:
        raise ValueError(f"stride must lie in [1, crop], got stride {stride} and crop {crop}")
    crop = min(crop, size)
    steps = -(-(size - crop) // stride)  # rounded up
    starts = [min(step * stride, size - crop) for step in range(steps + 1)]
    return [slice(start, start + crop) for start in starts]


def _hits(spans: list[slice], size: int) -> Tensor:
    """(size,) number of windows that contain each position."""
    hits = torch.zeros(size)
    for span in spans:
        hits[span] += 1
    return hits


def _precise(logits: Tensor) -> torch.dtype:
    """Half-precision logits are resized and averaged in float32."""
    return torch.promote_types(logits.dtype, torch.float32)


def _resize(logits: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(
        logits.to(_precise(logits)), size=list(size), mode="bilinear", align_corners=False
    )
