"""Pixels laid out class by class in tiles of equal size, for batched products with their own class.

Legend: C classes, D embedding size, N pixels; M tiles of T places.

A pixel only ever meets the K prototypes of its class. Products with those of all classes are C
times the work; a loop over classes, or groups of their real sizes, need sizes that only the device
knows. Tiles need neither: N pixels of C classes never fill more than N / T + C of them.
"""

from typing import NamedTuple

import torch
from torch import Tensor

TILE = 64  # T: small enough that part-filled tiles cost little with many classes


class ClassTiles(NamedTuple):
    """Attributes:
    label: (M,) int64 in [0, C): the class of each tile.
    pixel: (M, T) int64 in [0, N): what lies where; where there is nothing, a pixel of the lowest
        label.
    valid: (M, T) bool: the places that hold a pixel.
    place: (N,) int64 in [0, M*T): where each pixel lies; 0 for those without a class.
    """

    label: Tensor
    pixel: Tensor
    valid: Tensor
    place: Tensor

    def lay_out(self, values: Tensor) -> Tensor:
        """(N, ...) -> (M, T, ...)."""
        laid_out = values.index_select(0, self.pixel.flatten())
        return laid_out.view(*self.pixel.shape, *values.shape[1:])

    def collect(self, tiles: Tensor) -> Tensor:
        """(M, T, ...) -> (N, ...); pixels without a class get what lies at the first place."""
        return tiles.flatten(0, 1).index_select(0, self.place)


def tile_by_class(label: Tensor, num_classes: int, size: int = TILE) -> ClassTiles:
    """Sorts pixels by class into tiles that hold one class each; no host read.

    Args:
        label: (N,) int64 in [0, C], N > 0; pixels with label C lie in no tile.
        num_classes: C.
        size: T.
    """
    num_pixels = len(label)
    ordered, order = label.sort(stable=True)
    classes = torch.arange(num_classes + 1, device=label.device)
    begin = torch.searchsorted(ordered, classes)  # of each class among the ordered pixels
    count = begin.diff()
    tiles = (count + size - 1) // size
    end = tiles.cumsum(0)  # of each class among the tiles
    first = end - tiles

    tile = torch.arange(-(-num_pixels // size) + num_classes, device=label.device)
    tile_label = torch.searchsorted(end, tile, right=True)
    in_use = tile_label < num_classes
    tile_label = tile_label.clamp(max=num_classes - 1)
    inside = torch.arange(size, device=label.device)
    rank = (tile - first[tile_label]).unsqueeze(1) * size + inside
    valid = in_use.unsqueeze(1) & (rank < count[tile_label].unsqueeze(1))
    pixel = order[torch.where(valid, begin[tile_label].unsqueeze(1) + rank, 0)]

    # Of class C: place 0.
    first, start = torch.cat([first * size, first.new_zeros(1)]), begin[ordered]
    rank = torch.arange(num_pixels, device=label.device) - start
    slot = torch.where(ordered < num_classes, first[ordered] + rank, 0)
    return ClassTiles(tile_label, pixel, valid, torch.empty_like(slot).scatter_(0, order, slot))
