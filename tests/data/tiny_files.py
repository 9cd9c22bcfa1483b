"""Writes image and label files in the formats that data sets are published in."""

import struct
import zlib
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


def write_tiff(path: Path, pixels: np.ndarray, extra: tuple[int, ...] = ()) -> Path:
    """Uncompressed 8-bit RGB TIFF of (H, W, B) with B - 3 extra bands; ``extra`` says what they
    are: 0 unspecified, 1 premultiplied alpha, 2 alpha."""
    height, width, bands = pixels.shape
    after = 8 + pixels.size  # header and pixels stand first
    arrays = [struct.pack(f"<{bands}H", *[8] * bands), struct.pack(f"<{len(extra)}H", *extra)]
    places = [after, after + len(arrays[0])]
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, bands, places[0]), (259, 3, 1, 1)]
    entries += [(262, 3, 1, 2), (273, 4, 1, 8), (277, 3, 1, bands), (278, 4, 1, height)]
    entries += [(279, 4, 1, pixels.size), (284, 3, 1, 1)]
    if extra:
        inline = extra[0] if len(extra) == 1 else places[1]
        entries.append((338, 3, len(extra), inline))
    directory = struct.pack("<H", len(entries))
    directory += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    header = struct.pack("<2sHI", b"II", 42, after + sum(map(len, arrays)))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + pixels.tobytes() + b"".join(arrays) + directory)
    return path


def png_chunk(kind: bytes, data: bytes) -> bytes:
    body = kind + data
    return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))


def write_grey(path: Path, ids, bits: int) -> Path:
    """Grey PNG of 2 or 4 bits a pixel; a row must fill whole bytes."""
    ids = np.asarray(ids, np.uint8)
    height, width = ids.shape
    spread = np.unpackbits(ids[..., None], axis=-1)[..., 8 - bits :].reshape(height, -1)
    rows = np.hstack([np.zeros((height, 1), np.uint8), np.packbits(spread, axis=1)])
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(rows.tobytes()))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + pixels + png_chunk(b"IEND", b""))
    return path


def bomb(side: int) -> bytes:
    """A grey PNG of a kilobyte whose header promises side x side pixels."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + png_chunk(b"IEND", b"")
