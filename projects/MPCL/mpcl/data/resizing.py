"""The size at which networks see an image, and how it is brought there.

OpenCV resizes, as in the peers' code: its bilinear does not antialias and its nearest takes the
upper left pixel, Pillow's do otherwise, and an image must not look different in training, in
testing and to the peers.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress

import cv2
import numpy as np

from .decoding import BadFile, Size, stored_size
from .files import Record


def keep_aspect_size(size: Size, box: Size | None) -> Size:
    """The largest (h, w) with the aspect of ``size`` in a bounding box, long side to long side.

    Rounds as mmcv does, with one ratio for both sides: 1052x1914 in 1280x720 gives 704x1280.

    Args:
        size: (h, w).
        box: the sides of the box in either order; ``None`` or (0, 0) keeps the size.
    """
    if box is None or not any(box):
        return size
    ratio = min(max(box) / max(size), min(box) / min(size))
    return max(int(size[0] * ratio + 0.5), 1), max(int(size[1] * ratio + 0.5), 1)


def resize(array: np.ndarray, size: Size, *, nearest: bool = False) -> np.ndarray:
    """An image, bilinear, or a label map, by its ``nearest`` pixels, at (h, w)."""
    if array.shape[:2] == size:
        return array
    method = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.resize(array, size[::-1], interpolation=method)


def scale_factors(records: Iterable[Record], box: Size | None) -> list[float]:
    """By how much images are resized into a box (see :func:`keep_aspect_size`), by their headers,
    in ascending order. Files that cannot be read are left out; whoever decodes them names them."""
    factors = []
    for record in records:
        with suppress(BadFile):
            size = stored_size(record["file_name"])
            factors.append(max(keep_aspect_size(size, box)) / max(size))
    return sorted(factors)


def scales_in_words(name: str, factors: Sequence[float]) -> str:
    """Median, smallest and largest of a set's scale factors."""
    return f"{name} {np.median(factors):.2f} ({factors[0]:.2f} to {factors[-1]:.2f})"
