"""Image files, decoded strictly: what is broken, too large or would lose meaning is refused.

Every image of the package is opened here. Decoders are lenient in ways that training cannot see: an
OpenCV 4 fills the rest of a truncated JPEG with grey, divides 16 bits by 256 and multiplies the
colours of a TIFF by its alpha; a PostScript program may be named a.png; a file of a few kilobytes
may unfold to gigabytes. The header is therefore read first (Pillow, about 0.1 ms).
"""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from ..utils import zip_files
from ..utils.messages import AnyPath, shown

_LIMIT_VARIABLE = "MPCL_MAX_IMAGE_PIXELS"
_DEFAULT_LIMIT = 2**28  # 268 million: 16384 x 16384
_BYTES_A_PIXEL = 8  # of a file, at most: 16-bit RGBA without compression

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""Pillow's names of what is opened: formats that are pixels alone, and run no other program."""
IMAGE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
"""Pillow's names of what is read: 8-bit grey, palette and colour. Alpha is dropped, palettes become
their colours, EXIF orientation is applied."""

_EIGHT_BITS = (
    "convert it to 8 bits a channel, scaled as you want it to be seen (a plain division by 256 "
    "turns 12-bit images black)"
)
_REMEDIES = {"CMYK": "convert it to RGB with the colour profile that it was made with"}
# How files of a format end, unless something stands behind the image.
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82"}
# Of a JPEG; 0xFF before 0, 0xFF or a restart marker is a part of the pixels.
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_END_OF_IMAGE, _WITHOUT_LENGTH = 0xD9, (0x01, 0xD8)
_REPLACE = (
    f"expected a whole image ({', '.join(FORMATS)}): copy or download the file again, convert it, "
    "or take it out of the set"
)
_ORIENTATION = 0x0112  # EXIF tag; from 5 on, height and width change places
_NEW_SUBFILE_TYPE = 254  # TIFF tag; 0 = an image of its own
_SAMPLES_PER_PIXEL = 277  # TIFF tag

Size = tuple[int, int]


class BadFile(ValueError):
    """A file of the data that cannot be used.

    Attributes:
        file: its path.
        reason: what is wrong with it, what was expected, and the remedy; goes on after the path.
    """

    def __init__(self, file: AnyPath, reason: str) -> None:
        self.file, self.reason = os.fspath(file), reason
        super().__init__(self.file, reason)  # the arguments: it must survive pickling

    def __str__(self) -> str:
        return f"{shown(self.file)} {self.reason}"


class Header(NamedTuple):
    """What an image file says of itself."""

    size: Size  # (height, width) as it is shown
    mode: str  # Pillow's name
    turned: bool  # by EXIF, from one picture into another of the same size


def pixel_limit() -> int:
    """Pixels above which no image is decoded: ``$MPCL_MAX_IMAGE_PIXELS``, by default 2**28.

    Raises: ValueError: the variable holds no positive number.
    """
    text = os.getenv(_LIMIT_VARIABLE, str(_DEFAULT_LIMIT))
    if not text.isdecimal() or int(text) == 0:
        raise ValueError(f"{_LIMIT_VARIABLE} is {text!r}; expected a positive whole number")
    return int(text)


def _check_size(path: AnyPath, place: zip_files.InZip | None, pixels: int) -> None:
    """Refuses what would block or never end when it is read, and more than an image may be."""
    if place:
        size = zip_files.size_of(place)
    else:
        status = os.stat(path)
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise BadFile(path, "is no regular file; expected an image file")
    if size > (limit := _BYTES_A_PIXEL * pixels):
        raise BadFile(
            path,
            f"has {size} bytes, above the limit of {limit} for an image file "
            f"({_BYTES_A_PIXEL} bytes for each of {pixels} pixels); shrink it, or set "
            f"{_LIMIT_VARIABLE} higher if you trust the file",
        )


def read_bytes(path: AnyPath) -> bytes:
    """The content of a regular file, or of one in a zip archive, that is not larger than an image
    may be.

    Raises:
        BadFile: it is missing, no regular file, too large, or damaged or encrypted in its archive.
    """
    limit = pixel_limit()
    try:
        place = zip_files.in_zip(path)
        _check_size(path, place, limit)
        return zip_files.read(place) if place else Path(path).read_bytes()
    except BadFile:
        raise
    except OSError as error:
        raise BadFile(path, _in_words(error)) from error
    except ValueError as error:  # of an archive
        raise BadFile(path, str(error)) from error


@contextmanager
def opened(path: AnyPath, content: bytes | None = None) -> Iterator[Image.Image]:
    """The image of a file, its header read and its size checked; pixels are decoded on demand.

    Args:
        path: of the file.
        content: of the file, where it is at hand.

    Raises (also for what is done with the image inside):
        BadFile: it is missing, no image, broken, or too large.
        MemoryError: this machine has too little for it; names the file.
    """
    limit = pixel_limit()
    Image.MAX_IMAGE_PIXELS = limit  # Pillow raises above twice this number by itself
    try:
        if content is None and zip_files.in_zip(path):
            content = read_bytes(path)
        if content is None:
            _check_size(path, None, limit)
        source = open(path, "rb") if content is None else BytesIO(content)  # noqa: SIM115
        with source as file, _identified(path, file) as image:
            if image.width * image.height > limit:
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            _check_single(path, image)
            yield image
    except BadFile:
        raise
    except Image.DecompressionBombError as error:
        raise BadFile(
            path,
            f"is above the limit of {limit} pixels against decompression bombs ({error}); shrink "
            f"it, or set {_LIMIT_VARIABLE} higher if you trust the file",
        ) from error
    except Exception as error:  # Pillow's plugins raise nearly every kind for broken files
        if isinstance(error, MemoryError) or getattr(error, "code", 0) == cv2.Error.StsNoMem:
            raise MemoryError(f"{shown(path)} does not fit into this machine's memory") from error
        raise BadFile(path, _in_words(error)) from error


def _check_single(path: AnyPath, image: Image.Image) -> None:
    """Raises BadFile for a file of several images; smaller copies and masks of a TIFF are none, nor
    is what phones add to a JPEG."""
    pages = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if image.format == "TIFF" and pages > 1:
        kinds = []
        for page in range(pages):
            image.seek(page)
            kinds.append(image.tag_v2.get(_NEW_SUBFILE_TYPE, 0))
        image.seek(0)
        pages = kinds.count(0)
    if pages > 1:
        raise BadFile(path, f"holds {pages} images; expected one: save each in a file of its own")


def _identified(path: AnyPath, file: BinaryIO) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        file.seek(0)
        bands = _tiff_bands(file)
        _check_bands(path, bands)
        if bands in (3, 4):
            raise BadFile(
                path,
                f"is a TIFF of {bands} bands that does not say that they are red, green and blue; "
                "write it as RGB, such as gdal_translate -co PHOTOMETRIC=RGB",
            ) from None
        raise


def _tiff_bands(file: BinaryIO) -> int:
    """Bands of a TIFF, also of one that Pillow has no mode for; 0 if it is none."""
    header = file.read(8)
    if header[:4] not in (b"II\x2a\0", b"MM\0\x2a"):
        return 0
    directory = TiffImagePlugin.ImageFileDirectory_v2(header)
    file.seek(directory.next)
    directory.load(file)
    return int(directory.get(_SAMPLES_PER_PIXEL, 1))


def _check_bands(path: AnyPath, bands: int) -> None:
    if bands > 4:
        raise BadFile(
            path,
            f"has {bands} bands, expected at most 4, of which the first three are red, green and "
            "blue; write the three that are to be seen as RGB",
        )


def _in_words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read: {error.strerror}"
    text = str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):  # goes on with the address of a buffer
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


def check_mode(path: AnyPath, image: Image.Image) -> None:
    """Raises BadFile unless the image, not decoded yet, is one that :func:`to_bgr` takes."""
    if image.format == "TIFF":
        _check_bands(path, int(image.tag_v2.get(_SAMPLES_PER_PIXEL, 1)))
    raw = raw_mode(image)
    # "BGR;16" is a bitmap of 5 or 6 bits a channel.
    deep = image.mode[0] in "IF" or (";16" in raw and not raw.startswith("BGR"))
    if deep or image.mode not in IMAGE_MODES:
        remedy = _EIGHT_BITS if deep else _REMEDIES.get(image.mode, "convert it to RGB")
        found = raw if deep else image.mode
        raise BadFile(path, f"is in mode {found!r}, expected 8-bit grey, palette or RGB; {remedy}")


def inspect_image(path: AnyPath) -> Header:
    """Decodes a whole image with Pillow, which checks it to its end, and says what it is.

    Raises: BadFile: it is not one that :func:`read_image` takes.
    """
    content = read_bytes(path)
    with opened(path, content) as image:
        check_mode(path, image)
        _check_end(path, image, content)
        turn = 1 if image.format == "TIFF" else orientation(image)  # Pillow turns TIFFs itself
        stored = image.height, image.width
        size = stored[::-1] if turn >= 5 else stored
        return Header(size, image.mode, turned=turn != 1 and size == stored)


def _check_end(path: AnyPath, image: Image.Image, content: bytes) -> None:
    """Decodes the image; raises BadFile where it ends before its end. Decoders take a JPEG whose
    rest is zeros, as an interrupted copy leaves it, for a whole one."""
    if image.format in ("JPEG", "MPO") and not _jpeg_ends(content):
        raise BadFile(path, f"cannot be decoded (truncated, a JPEG without end); {_REPLACE}")
    image.load()


def _jpeg_ends(content: bytes) -> bool:
    """Whether the segments of a JPEG, one after the other, lead to the marker of its end."""
    at = 2
    while found := _MARKER.search(content, at):
        marker, at = content[found.start() + 1], found.end()
        if marker == _END_OF_IMAGE:
            return True
        if marker not in _WITHOUT_LENGTH:
            at += int.from_bytes(content[at : at + 2], "big")
    return False


def stored_size(path: AnyPath) -> Size:
    """(height, width) of an image by its header alone, as it is stored: not turned by EXIF.

    Raises: BadFile: the header cannot be read.
    """
    with opened(path) as image:
        return image.height, image.width


def stored_image_size(path: AnyPath) -> Size:
    """:func:`stored_size` of one that :func:`read_image` takes by its header.

    Raises: BadFile: it does not.
    """
    with opened(path) as image:
        check_mode(path, image)
        return image.height, image.width


def to_bgr(image: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 in OpenCV's BGR order, upright by its EXIF tag: the first three bands as they
    are stored, whatever a fourth says; palettes become their colours.

    Args:
        image: of a mode among ``IMAGE_MODES``.
    """
    # Pillow divides the colours of a TIFF by an alpha that its tag calls premultiplied.
    image_tiles = getattr(image, "tile", None) or []
    if raw_mode(image) == "RGBa":
        image.tile = [_with_mode(tile, "RGBA") for tile in image_tiles]
    upright = image if image.format == "TIFF" else ImageOps.exif_transpose(image)
    return np.ascontiguousarray(np.asarray(upright.convert("RGB"))[..., ::-1])


def _with_mode(tile: Any, mode: str) -> Any:
    arguments = (mode, *tile[3][1:]) if isinstance(tile[3], tuple) else mode
    named = hasattr(tile, "_replace")  # Pillow 10 has plain tuples
    return tile._replace(args=arguments) if named else (*tile[:3], arguments)


def read_image(path: AnyPath) -> np.ndarray:
    """Decodes an image file to (H, W, 3) uint8 in OpenCV's BGR order; see :func:`to_bgr`.

    Raises: BadFile: missing, no image, truncated, of a mode that would lose meaning, or above
        :func:`pixel_limit`.
    """
    content = read_bytes(path)
    with opened(path, content) as image:
        check_mode(path, image)
        plain = image.format == "PNG" and image.mode in ("L", "RGB")
        if not plain and image.format not in ("JPEG", "MPO"):
            return to_bgr(image)
        if not content.endswith(_ENDS[image.format]):  # something may follow the image
            _check_end(path, image, content)
        # OpenCV decodes JPEG and PNG faster, and JPEG as the peers' code does.
        decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise BadFile(path, f"cannot be decoded; {_REPLACE}")
    return decoded


def check_pair(image: AnyPath, label: AnyPath, image_size: Size, label_size: Size) -> None:
    """Raises BadFile, naming both files, unless image and label have the same (height, width)."""
    if image_size != label_size:
        turned = ", or apply the image's EXIF orientation" if image_size == label_size[::-1] else ""
        raise BadFile(
            label,
            f"has height x width {label_size}, but its image {shown(image)} has {image_size}; "
            f"expected the same size: export both from one source{turned}",
        )
