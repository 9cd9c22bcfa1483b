"""Images whose logits would not fit into memory: predicted by tiles, kept as ids alone.

A tile is a group of the sliding window's windows. Its windows are windows of the whole image, too,
and of a tile only those pixels are kept that no other window contains: what comes out is what the
sliding window over the whole image gives, everywhere.

Legend: C classes, (H, W) an image's own size, (h, w) its size as the network sees it.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

Size = tuple[int, int]
_BLOCK = 1024  # pixels to a side that are brought to the image's own size at once


class Labels(NamedTuple):
    """The prediction of an image."""

    ids: np.ndarray  # (H, W) uint8 train ids
    confidence: np.ndarray | None  # (H, W) float32 probability of that class


def label(logits: Tensor, temperature: float | None) -> Labels:
    """The most probable classes of (C, H, W) logits.

    Args:
        temperature: of the softmax that confidences come from; None = no confidences.
    Raises: ValueError: the network gives NaN, which has no most probable class.
    """
    scores = logits if temperature is None else (logits / temperature).softmax(0)
    largest, ids = scores.max(0)
    if largest.isnan().any():
        raise ValueError("the network gives NaN; expected numbers: its weights are damaged")
    confidence = None if temperature is None else largest.cpu().numpy()
    return Labels(ids.to(torch.uint8).cpu().numpy(), confidence)


def tiles(size: int, side: int, crop: int, stride: int, margin: int) -> list[tuple[slice, slice]]:
    """Tiles along one direction: what of the image a tile sees, and the part of it that is kept.

    The kept parts lie side by side and cover the image. Windows are ``crop`` long and ``stride``
    apart, the last one shifted back inside; none contains a pixel of a kept part, nor one within
    ``margin`` of it, without being one of the tile's windows.

    Args:
        size: of the image, pixels.
        side: of a tile, at most; at least ``2 * (crop + margin) + stride``.
    """
    crop = min(crop, size)
    length = crop + (side - crop) // stride * stride
    found, start, kept = [], 0, 0
    while start + length < size:
        # The first window that is not of this tile: the next one, or the last of the image.
        end = min(start + length - crop + stride, size - crop) - margin
        found.append((slice(start, start + length), slice(kept, end)))
        start, kept = (end - margin - crop + stride) // stride * stride, end
    return [*found, (slice(start, size), slice(kept, size))]


def label_by_tiles(
    logits_of: Callable[[np.ndarray], Tensor],
    image: np.ndarray,
    size: Size,
    *,
    side: int | None,
    crop: Size,
    stride: Size,
    temperature: float | None,
) -> Labels:
    """The most probable classes of a large image, at its own size.

    Memory holds the logits of one tile and, of its part of the image, what a block of 1024 x 1024
    pixels needs.

    Args:
        logits_of: maps a tile of the image to logits (C, tile height, tile width).
        image: (h, w, 3).
        size: (H, W).
        side: of a tile, pixels of the image as the network sees it, but of three windows at
            least; None = the whole image is one.
        crop, stride: (vertical, horizontal) of the sliding windows that ``logits_of`` moves.
        temperature: of the softmax that confidences come from; None = no confidences.
    """
    seen = (image.shape[0], image.shape[1])
    ids = np.empty(size, np.uint8)
    confidence = None if temperature is None else np.empty(size, np.float32)
    rows, columns = (
        _tiles_of(n, own, side, c, s) if side else tiles(n, n, n, n, 0)
        for n, own, c, s in zip(seen, size, crop, stride)
    )
    for tile_y, kept_y in rows:
        for tile_x, kept_x in columns:
            logits = logits_of(image[tile_y, tile_x])
            for y in _blocks(kept_y, seen[0], size[0]):
                for x in _blocks(kept_x, seen[1], size[1]):
                    places = (
                        _places(span, n, own) - tile.start
                        for span, n, own, tile in zip((y, x), seen, size, (tile_y, tile_x))
                    )
                    block = label(at(logits, *places), temperature)
                    ids[y, x] = block.ids
                    if confidence is not None:
                        confidence[y, x] = block.confidence
            del logits  # before the next tile's
    return Labels(ids, confidence)


def _tiles_of(seen: int, own: int, side: int, crop: int, stride: int) -> list[tuple[slice, slice]]:
    """:func:`tiles` whose margin holds the neighbours that own pixels are interpolated from: the
    first and last of a part lie up to half an own pixel outside of it."""
    margin = math.ceil((seen / own + 1) / 2) if seen != own else 0
    return tiles(seen, max(side, 3 * crop + 2 * margin), crop, stride, margin)


def at(logits: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """(C, h, w) bilinearly interpolated at fractional rows and columns -> (C, rows, columns)."""
    for dim, places in ((1, rows), (2, columns)):
        places = places.clamp(0, logits.shape[dim] - 1).to(logits.device)
        before = places.long()
        if torch.equal(before.to(places), places):
            logits = logits.index_select(dim, before)
            continue
        after = (before + 1).clamp(max=logits.shape[dim] - 1)
        weight = (places - before).to(logits).view(-1, *[1] * (2 - dim))
        logits = torch.lerp(
            logits.index_select(dim, before), logits.index_select(dim, after), weight
        )
    return logits


def _places(span: slice, seen: int, own: int) -> Tensor:
    """Where own pixels lie on the grid that the network sees, as in torch's bilinear resize."""
    pixels = torch.arange(span.start, span.stop, dtype=torch.float64)
    return (pixels + 0.5) * (seen / own) - 0.5


def _blocks(kept: slice, seen: int, own: int) -> Iterator[slice]:
    """The own pixels of a part of what the network sees, in blocks."""
    start, stop = (-(-edge * own // seen) for edge in (kept.start, kept.stop))
    for block in range(start, stop, _BLOCK):
        yield slice(block, min(block + _BLOCK, stop))
