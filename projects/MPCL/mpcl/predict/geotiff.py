"""Where on the earth an image lies: GeoTIFF tags, from an input to the masks predicted of it.

Source: OGC GeoTIFF Standard 1.1.
"""

import logging
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from ..utils.messages import shown

logger = logging.getLogger(__name__)

GEO_TAGS = {
    33550: "ModelPixelScale",
    33922: "ModelTiepoint",
    34264: "ModelTransformation",
    34735: "GeoKeyDirectory",
    34736: "GeoDoubleParams",
    34737: "GeoAsciiParams",
}
_ORIENTATION = 274

GeoTags = Mapping[int, tuple[int, Any]]
"""Tag -> its TIFF type and its value."""

NOWHERE: GeoTags = {}


def georeference(path: str, image: Image.Image) -> GeoTags:
    """The tags that say where a TIFF lies; empty of other files, and of a TIFF that its orientation
    tag turns, whose pixels the tags no longer fit: a warning names it.

    Args:
        image: opened from ``path``, not decoded yet.
    """
    if image.format != "TIFF":
        return NOWHERE
    held = image.tag_v2
    tags = {tag: (held.tagtype[tag], held[tag]) for tag in GEO_TAGS if tag in held}
    if tags and held.get(_ORIENTATION, 1) != 1:
        logger.warning(f"{shown(path)} is turned by its orientation tag: no georeference is copied")
        return NOWHERE
    return tags


def encode_tiff(pixels: np.ndarray, tags: GeoTags) -> bytes:
    """A deflated TIFF of (H, W) or RGB (H, W, 3) uint8 that carries the tags."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, (kind, value) in tags.items():
        directory.tagtype[tag] = kind
        directory[tag] = value
    file = BytesIO()
    Image.fromarray(pixels).save(file, "TIFF", tiffinfo=directory, compression="tiff_adobe_deflate")
    return file.getvalue()
