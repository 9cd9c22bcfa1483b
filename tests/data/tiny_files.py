"""Writes image and label files in the formats that data sets are published in."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def write_image(path: Path, size: tuple[int, int] = (4, 6), level: int = 90) -> Path:
    """A grey-level RGB image; ``size`` is (height, width)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), level, np.uint8)).save(path)
    return path


def write_label(path: Path, ids) -> Path:
    """8-bit grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(ids, np.uint8)).save(path)
    return path


def write_palette_label(path: Path, ids) -> Path:
    """Palette PNG as in GTA5: the index is the id, the colour of id i has nothing to do with i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(ids, np.uint8))
    image.putpalette([(37 * i + 11) % 256 for i in range(768)])
    assert image.mode == "P"
    image.save(path)
    return path


def write_synthia_label(path: Path, ids, instances) -> Path:
    """16-bit RGB PNG as in SYNTHIA: class in R, instance in G; OpenCV's order is B, G, R."""
    path.parent.mkdir(parents=True, exist_ok=True)
    planes = [np.zeros_like(ids), instances, ids]
    assert cv2.imwrite(str(path), np.stack(planes, -1).astype(np.uint16))
    return path
