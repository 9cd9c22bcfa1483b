"""Label images: what a file holds, turned into class indices.

A label file is an 8-bit grey or palette image whose *index* is the id of a class. Common readers
get this wrong in silence: ``Image.convert("L")`` turns palette indices into luminance (GTA5),
OpenCV turns them into colours, and a JPEG invents ids at every edge. Everything here reads the
index itself and refuses files that hold none. Where the colours of a mask stand for classes, a map
from colours says so.
"""

from collections.abc import Mapping
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..utils.ignore_label import IGNORE_LABEL
from ..utils.messages import AnyPath
from .decoding import BadFile, Size, check_mode, opened, orientation, raw_mode, to_bgr

Color = tuple[int, int, int]
LabelMap = Mapping[int, int] | Mapping[Color, int]
"""Raw id, or RGB colour, of a file -> class index in [0, C) or ``IGNORE_LABEL``. Ids that it does
not name are ignored; colours that it does not name are refused."""

_INDEX_MODES = ("L", "P", "1")
_EXPECTED = "an 8-bit grey or palette image that holds class ids, in a lossless format such as PNG"
_LOSSY = ("JPEG", "MPO", "jpeg", "tiff_jpeg", "webp")  # formats, and compressions of a TIFF
_INVERTED = ("1;I", "1;IR", "L;I", "L;IR")  # "min is white": Pillow turns 0 into 255
_SPREAD = ("L;2", "L;4")  # grey that Pillow spreads over 0..255: id 1 would become 85 or 17


class LabelContent(NamedTuple):
    """What a label file holds."""

    ids: NDArray[np.int64]  # (256,) pixels of each raw id; of a colour mask, of each class index
    size: Size  # (height, width)
    palette: bytes | None  # RGB of each id in turn, of a palette image whose ids count


def identity_except(*ignored: int) -> dict[int, int]:
    """Label map of files that hold class indices already, but write "ignore" as other ids than 255.

    It names all 256 ids: an id that is neither a class nor ignored stays itself, hence is found as
    a fault by :mod:`mpcl.data.sets.checking` and refused by :mod:`mpcl.data.statistics`.
    """
    return {raw: IGNORE_LABEL if raw in ignored else raw for raw in range(256)}


def maps_colors(label_map: LabelMap | None) -> bool:
    """Whether a label map is one from colours."""
    return bool(label_map) and isinstance(next(iter(label_map)), tuple)


def lookup_table(label_map: LabelMap | None) -> NDArray[np.uint8]:
    """(256,) table: raw id -> class index; 255 for the ids that the map does not name.

    Without a map, or with one from colours, ids are class indices already.

    Raises: ValueError: an id or index lies outside [0, 255].
    """
    if label_map is None or maps_colors(label_map):
        return np.arange(256, dtype=np.uint8)
    table = np.full(256, IGNORE_LABEL, dtype=np.uint8)
    for raw, index in label_map.items():
        if not (0 <= raw <= 255 and 0 <= index <= 255):
            raise ValueError(
                f"label_map expects ids and class indices in [0, 255], got {raw}: {index}"
            )
        table[raw] = index
    return table


def fold_ids(ids: NDArray[np.int64], label_map: LabelMap | None) -> NDArray[np.int64]:
    """(256,) pixels of raw ids -> (256,) pixels of class indices."""
    return np.bincount(lookup_table(label_map), weights=ids, minlength=256).astype(np.int64)


def check_ids(path: AnyPath, counts: NDArray[np.int64], num_classes: int) -> None:
    """Raises BadFile if the (256,) pixel counts of class indices in a label name an unknown one."""
    strangers = np.flatnonzero(counts[num_classes:IGNORE_LABEL]) + num_classes
    if len(strangers):
        raise BadFile(
            path,
            f"holds the ids {strangers.tolist()}, expected class indices below {num_classes} or "
            f"{IGNORE_LABEL} (ignored); name what they mean with label_map or ignore "
            "(datasets/README.md), or run the set's datasets/prepare_*.py",
        )


def check_label(path: AnyPath, label: NDArray[np.uint8], num_classes: int) -> None:
    """:func:`check_ids` of class indices (H, W), in a fraction of a millisecond."""
    if cv2.countNonZero(cv2.inRange(label, num_classes, IGNORE_LABEL - 1)):
        check_ids(path, np.bincount(label.ravel(), minlength=256), num_classes)


def read_label(path: AnyPath, label_map: LabelMap | None = None) -> NDArray[np.uint8]:
    """Reads a label file.

    Args:
        path: 8-bit grey or palette image, of a palette image the indices count, never the colours;
            with a map from colours, any image of 8 bits a channel.
        label_map: raw id or colour -> class index; None when the file holds class indices already.
    Returns: (H, W) uint8, writable; class indices, 255 = ignored.
    Raises: BadFile: it is missing or broken, holds no class ids (colours, 16 bits, several
        channels, lossy) or a colour that the map does not name, or is turned by an EXIF tag.
    """
    ids, _ = _read_ids(path, label_map)
    if label_map is None or maps_colors(label_map):
        return ids
    return np.asarray(cv2.LUT(ids, lookup_table(label_map)), dtype=np.uint8).reshape(ids.shape)


def inspect_label(path: AnyPath, label_map: LabelMap | None = None) -> LabelContent:
    """Counts the raw ids of a label file, before any map from ids.

    Raises: BadFile: as :func:`read_label`.
    """
    ids, palette = _read_ids(path, label_map)
    return LabelContent(np.bincount(ids.ravel(), minlength=256), ids.shape, palette)


def _read_ids(path: AnyPath, label_map: LabelMap | None) -> tuple[NDArray[np.uint8], bytes | None]:
    """Ids, of a colour mask the class indices; and the palette of a palette image."""
    with opened(path) as image:
        packed = image.info.get("compression", "") if image.format == "TIFF" else image.format
        if packed in _LOSSY:
            remedy = "save it as PNG from its source: JPEG has changed ids at every edge"
            raise BadFile(path, f"is a JPEG inside, expected {_EXPECTED}; {remedy}")
        if maps_colors(label_map):
            check_mode(path, image)
            _check_upright(path, image)
            return _classes_of_colors(path, to_bgr(image), label_map), None
        _check_index_mode(path, image)
        ids = np.array(image, dtype=np.uint8)
        _check_upright(path, image)
        return ids, bytes(image.getpalette("RGB")) if image.mode == "P" else None


def _check_index_mode(path: AnyPath, image: Image.Image) -> None:
    raw = raw_mode(image)
    if image.mode in _INDEX_MODES and raw not in (*_SPREAD, *_INVERTED):
        return
    remedy = "name the class of each colour with label_colors (datasets/README.md)"
    if raw in _SPREAD:
        bits = raw[2:]
        remedy = f"save the same ids with 8 bits a pixel: readers disagree on those of {bits} bits"
    elif raw in _INVERTED:
        remedy = "save it with 0 as black: readers disagree on what is stored so"
    elif image.mode[0] == "I" or ";16" in raw:
        remedy = "write its ids as 8 bits (datasets/prepare_synthia.py does it for SYNTHIA)"
    mode = raw if raw in (*_SPREAD, *_INVERTED) else image.mode
    found = f"mode {mode!r} in format {image.format}"
    raise BadFile(path, f"has {found}, expected {_EXPECTED}; {remedy}")


def _check_upright(path: AnyPath, image: Image.Image) -> None:
    if image.format != "TIFF" and orientation(image) != 1:  # Pillow turns TIFFs itself
        raise BadFile(
            path,
            f"has EXIF orientation {orientation(image)}, expected none in a label, as readers "
            "disagree on it; turn its pixels to lie as the image is shown, and remove the tag",
        )


def _classes_of_colors(
    path: AnyPath, bgr: NDArray[np.uint8], label_map: Mapping[Color, int]
) -> NDArray[np.uint8]:
    def code(blue, green, red):
        return blue | green << 8 | red << 16

    pixels = code(*np.moveaxis(bgr.astype(np.int32), -1, 0))
    known = sorted((code(blue, green, red), i) for (red, green, blue), i in label_map.items())
    codes, classes = np.array(known, np.int32).T
    place = np.searchsorted(codes, pixels).clip(max=len(codes) - 1)
    strangers, count = np.unique(pixels[codes[place] != pixels], return_counts=True)
    if len(strangers):
        shown = [[int(c >> 16), int(c >> 8 & 255), int(c & 255)] for c in strangers[:4]]
        raise BadFile(
            path,
            f"holds {len(strangers)} colours that label_colors does not name, on {count.sum()} of "
            f"{pixels.size} pixels, such as {shown}; expected the colours of classes or of ignore. "
            "Name them, or export the mask without smooth edges",
        )
    return classes.astype(np.uint8)[place]
