"""Image files, decoded strictly: what is broken, too large or would lose meaning is refused.

Decoders are lenient in ways that training cannot see: an OpenCV 4 fills the rest of a truncated
JPEG with grey, divides 16 bits by 256, and a file of a few kilobytes may unfold to gigabytes. The
header is therefore read first (Pillow, about 0.1 ms), and the end of the file is looked at.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

_LIMIT_VARIABLE = "MPCL_MAX_IMAGE_PIXELS"
_DEFAULT_LIMIT = 2**27  # 134 million: 16384 x 8192

IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
"""Pillow's names of what is read: 8-bit grey, palette and colour. Alpha is dropped, palettes become
their colours, EXIF orientation is applied."""

_EIGHT_BITS = (
    "convert it to 8 bits a channel, scaled as you want it to be seen (a plain division by 256 "
    "turns 12-bit images black)"
)
_REMEDIES = {
    "CMYK": "convert it to RGB with the colour profile that it was made with",
}
# How files of a format end, unless something stands behind the image.
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
_REPLACE = "expected a whole image: copy or download the file again, or take it out of the set"
_ORIENTATION = 0x0112  # EXIF tag; from 5 on, height and width change places

Size = tuple[int, int]


class BadFile(ValueError):
    """A file of the data that cannot be used.

    Attributes:
        file: its path.
        reason: what is wrong with it, what was expected, and the remedy; goes on after the path.
    """

    def __init__(self, file: str | os.PathLike[str], reason: str) -> None:
        self.file, self.reason = os.fspath(file), reason
        super().__init__(self.file, reason)  # the arguments: it must survive pickling

    def __str__(self) -> str:
        return f"{self.file} {self.reason}"


class Header(NamedTuple):
    """What an image file says of itself: ``size`` (height, width) as it is shown."""

    size: Size
    mode: str
    format: str


def pixel_limit() -> int:
    """Pixels above which no image is decoded: ``$MPCL_MAX_IMAGE_PIXELS``, by default 2**27.

    Raises:
        ValueError: the variable holds no positive number.
    """
    text = os.getenv(_LIMIT_VARIABLE, str(_DEFAULT_LIMIT))
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{_LIMIT_VARIABLE} is {text!r}; expected a positive whole number")
    return int(text)


@contextmanager
def opened(path: str | os.PathLike[str], content: bytes | None = None) -> Iterator[Image.Image]:
    """The image of a file, its header read and its size checked; pixels are decoded on demand.

    Args:
        path: of the file.
        content: of the file, where it is at hand.

    Raises (also for what is done with the image inside):
        BadFile: it is missing, no image, broken, or too large.
    """
    limit = pixel_limit()
    Image.MAX_IMAGE_PIXELS = limit  # Pillow raises above twice this number by itself
    try:
        with Image.open(path if content is None else BytesIO(content)) as image:
            if image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            yield image
    except (BadFile, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise BadFile(
            path,
            f"is above the limit of {limit} pixels against decompression bombs ({error}); shrink "
            f"it, or set {_LIMIT_VARIABLE} higher if you trust the file",
        ) from error
    except Exception as error:  # Pillow's plugins raise nearly every kind for broken files
        raise BadFile(path, _in_words(error)) from error


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    text = str(error) or type(error).__name__
    if text.startswith("cannot identify image file"):  # goes on with the address of a buffer
        text = "not an image"
    return f"cannot be decoded ({text}); {_REPLACE}"


def raw_mode(image: Image.Image) -> str:
    """The mode in the file, which Pillow may widen or narrow when it decodes; not after that."""
    tile = getattr(image, "tile", None)
    arguments = tile[0][3] if tile else None
    first = arguments[0] if isinstance(arguments, tuple) and arguments else arguments
    return first if isinstance(first, str) else image.mode


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 = upright. Decodes a PNG to its end."""
    return int(image.getexif().get(_ORIENTATION, 1))


def _check_mode(path: str | os.PathLike[str], image: Image.Image) -> None:
    raw = raw_mode(image)
    # "BGR;16" is a bitmap of 5 or 6 bits a channel.
    deep = image.mode[0] in "IF" or (";16" in raw and not raw.startswith("BGR"))
    if deep or image.mode not in IMAGE_MODES:
        remedy = _EIGHT_BITS if deep else _REMEDIES.get(image.mode, "convert it to RGB")
        found = raw if deep else image.mode
        raise BadFile(path, f"is in mode {found!r}, expected 8-bit grey, palette or RGB; {remedy}")


def inspect_image(path: str | os.PathLike[str]) -> Header:
    """Decodes a whole image with Pillow, which checks it to its end, and says what it is.

    Raises:
        BadFile: it is not one that :func:`read_image` takes.
    """
    with opened(path) as image:
        _check_mode(path, image)
        image.load()
        swapped = orientation(image) >= 5 and image.format != "TIFF"  # Pillow turns TIFFs itself
        size = (image.width, image.height) if swapped else (image.height, image.width)
        return Header(size, image.mode, str(image.format))


def read_image(path: str | os.PathLike[str]) -> np.ndarray:
    """Decodes an image file to (H, W, 3) uint8 in OpenCV's BGR order, upright by its EXIF tag.

    Raises:
        BadFile: missing, no image, truncated, of a mode that would lose meaning, or above
            :func:`pixel_limit`.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise BadFile(path, _in_words(error)) from error
    with opened(path, content) as image:
        _check_mode(path, image)
        # Something may follow the image, and formats but the common two have no end to look for.
        if not content.endswith(_ENDS.get(str(image.format), b"\0")):
            image.load()
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise BadFile(path, f"cannot be decoded; {_REPLACE}")
    return decoded


def check_pair(record: Mapping[str, Any], image_size: Size, label_size: Size) -> None:
    """Raises BadFile, naming both files, unless image and label have the same (height, width)."""
    if image_size != label_size:
        turned = ", or apply the image's EXIF orientation" * (image_size == label_size[::-1])
        raise BadFile(
            record["sem_seg_file_name"],
            f"has height x width {label_size}, but its image {record['file_name']} has "
            f"{image_size}; expected the same size: export both from one source{turned}",
        )
