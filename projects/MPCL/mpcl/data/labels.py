"""Label images: what a file holds, turned into class indices.

A label file is an 8-bit grey or palette image whose *index* is the id of a class. Common readers
get this wrong in silence: ``Image.convert("L")`` turns palette indices into luminance (GTA5),
OpenCV turns them into colours, and a JPEG invents ids at every edge. Everything here reads the
index itself and refuses files that hold none.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from .decoding import BadFile, opened, orientation, raw_mode

IGNORE_LABEL = 255
"""Class index of pixels that take no part in losses and scores, in every data set."""

LabelMap = Mapping[int, int]
"""Raw id of a file -> class index in [0, C) or ``IGNORE_LABEL``. Ids that it does not name are
ignored."""

_INDEX_MODES = ("L", "P", "1")
_EXPECTED = "an 8-bit grey or palette image that holds class ids, in a lossless format such as PNG"


def identity_except(*ignored: int) -> dict[int, int]:
    """Label map of files that hold class indices already, but write "ignore" as other ids than 255.

    It names all 256 ids: an id that is neither a class nor ignored stays itself, hence is found as
    a fault by :mod:`mpcl.data.sets.checking` and refused by :mod:`mpcl.data.statistics`.
    """
    return {raw: IGNORE_LABEL if raw in ignored else raw for raw in range(256)}


def lookup_table(label_map: LabelMap) -> NDArray[np.uint8]:
    """(256,) table: raw id -> class index; 255 for the ids that the map does not name.

    Raises:
        ValueError: an id or index lies outside [0, 255].
    """
    table = np.full(256, IGNORE_LABEL, dtype=np.uint8)
    for raw, index in label_map.items():
        if not (0 <= raw <= 255 and 0 <= index <= 255):
            raise ValueError(
                f"label_map expects ids and class indices in [0, 255], got {raw}: {index}"
            )
        table[raw] = index
    return table


def _check_mode(path: str | os.PathLike[str], image: Image.Image) -> None:
    raw = raw_mode(image)
    # Pillow spreads 2- and 4-bit grey over 0..255, so that id 1 would become 85 or 17.
    spread = raw in ("L;2", "L;4")
    if image.mode not in _INDEX_MODES or spread or image.format == "JPEG":
        found = f"mode {raw if spread else image.mode!r} in format {image.format}"
        raise BadFile(path, f"has {found}, expected {_EXPECTED}; {_remedy(image)}")


def _remedy(image: Image.Image) -> str:
    if image.format == "JPEG":
        return "save it as PNG from its source: JPEG has changed ids at every edge"
    if image.mode[0] == "I" or ";16" in raw_mode(image):
        return "write its ids as 8 bits (datasets/prepare_synthia.py does it for SYNTHIA)"
    return "turn colours into ids: one number a pixel, named by the key label_map"


def _check_upright(path: str | os.PathLike[str], image: Image.Image) -> None:
    if image.format != "TIFF" and orientation(image) != 1:  # Pillow turns TIFFs itself
        raise BadFile(
            path,
            f"has EXIF orientation {orientation(image)}, expected none in a label, as readers "
            "disagree on it; turn its pixels to lie as the image is shown, and remove the tag",
        )


def check_ids(path: str | os.PathLike[str], counts: NDArray[np.int64], num_classes: int) -> None:
    """Raises BadFile if the (256,) pixel counts of class indices in a label name an unknown one."""
    strangers = np.flatnonzero(counts[num_classes:IGNORE_LABEL]) + num_classes
    if len(strangers):
        raise BadFile(
            path,
            f"holds the ids {strangers.tolist()}, expected class indices below {num_classes} or "
            f"{IGNORE_LABEL} (ignored); name what they mean with label_map or ignore "
            "(datasets/README.md), or run the set's datasets/prepare_*.py",
        )


def read_label(
    path: str | os.PathLike[str], label_map: LabelMap | None = None
) -> NDArray[np.uint8]:
    """Reads a label file.

    Args:
        path: 8-bit grey or palette image; of a palette image the indices count, never the colours.
        label_map: raw id -> class index; None when the file holds class indices already.

    Returns:
        (H, W) uint8, writable; class indices, 255 = ignored.

    Raises:
        BadFile: it is missing or broken, holds no class ids (colours, 16 bits, several channels,
            lossy), or is turned by an EXIF tag.
    """
    with opened(path) as image:
        _check_mode(path, image)
        raw = np.array(image, dtype=np.uint8)
        _check_upright(path, image)
    if label_map is None:
        return raw
    return np.asarray(cv2.LUT(raw, lookup_table(label_map)), dtype=np.uint8).reshape(raw.shape)


def read_label_histogram(path: str | os.PathLike[str]) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Counts the raw ids of a label file.

    Returns:
        (256,) int64 pixel count of every raw id (apply no map), and the size (height, width).

    Raises:
        BadFile: as :func:`read_label`.
    """
    with opened(path) as image:
        _check_mode(path, image)
        index = image.convert("L") if image.mode == "1" else image
        counts = np.array(index.histogram(), dtype=np.int64)
        if image.mode == "1":  # Pillow widens one bit to 0 and 255; the ids are 0 and 1
            counts[1], counts[255] = counts[255], 0
        _check_upright(path, image)
        return counts, (image.height, image.width)


def label_loader(label_map: LabelMap | None) -> Callable[..., NDArray[Any]]:
    """Reader for ``SemSegEvaluator(sem_seg_loading_fn=...)``.

    Detectron2's own reader passes ``copy=False`` to ``np.array``, which NumPy 2 refuses, and maps
    no ids.

    Returns:
        ``load(path, copy=False, dtype=None) -> (H, W)`` class indices, as uint8 or ``dtype``. The
        array is the caller's to write to, whatever ``copy`` says: the evaluator changes it in
        place.
    """

    def load(path: str, copy: bool = False, dtype: DTypeLike | None = None) -> NDArray[Any]:
        label = read_label(path, label_map)
        return label if dtype is None else label.astype(dtype)

    return load
