"""Label images: what a file holds, turned into class indices.

A label file is an 8-bit grey or palette image whose *index* is the id of a class. Common readers
get this wrong in silence: ``Image.convert("L")`` turns palette indices into luminance (GTA5),
OpenCV turns them into colours, and a JPEG invents ids at every edge. Everything here reads the
index itself and refuses files that hold none.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
from numpy.typing import DTypeLike, NDArray
from PIL import Image

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
    a fault by :mod:`mpcl.data.checking` and refused by :mod:`mpcl.data.statistics`.
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


@contextmanager
def _open_label(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """The image of a label file, once its mode is checked; its decoding errors name the file."""
    try:
        with Image.open(path) as image:
            _check_mode(path, image)
            yield image
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError) as error:  # what Pillow raises for broken files
        raise ValueError(f"label {os.fspath(path)} cannot be decoded: {error}") from error


def _check_mode(path: str | os.PathLike[str], image: Image.Image) -> None:
    raw_mode = _raw_mode(image)
    # Pillow spreads 2- and 4-bit grey over 0..255, so that id 1 would become 85 or 17.
    spread = raw_mode in ("L;2", "L;4")
    if image.mode not in _INDEX_MODES or spread or image.format == "JPEG":
        found = f"mode {raw_mode if spread else image.mode!r} in format {image.format}"
        raise ValueError(f"label {os.fspath(path)}: found {found}, expected {_EXPECTED}")


def _raw_mode(image: Image.Image) -> str:
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else None
    return arguments if isinstance(arguments, str) else image.mode


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
        ValueError: the file holds no class ids (colours, 16 bits, several channels, lossy) or is
            broken.
    """
    with _open_label(path) as image:
        raw = np.array(image, dtype=np.uint8)
    if label_map is None:
        return raw
    return np.asarray(cv2.LUT(raw, lookup_table(label_map)), dtype=np.uint8).reshape(raw.shape)


def read_label_histogram(path: str | os.PathLike[str]) -> tuple[NDArray[np.int64], tuple[int, int]]:
    """Counts the raw ids of a label file.

    Returns:
        (256,) int64 pixel count of every raw id (apply no map), and the size (height, width).

    Raises:
        ValueError: as :func:`read_label`.
    """
    with _open_label(path) as image:
        index = image.convert("L") if image.mode == "1" else image
        counts = np.array(index.histogram(), dtype=np.int64)
        if image.mode == "1":  # Pillow widens one bit to 0 and 255; the ids are 0 and 1
            counts[1], counts[255] = counts[255], 0
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
