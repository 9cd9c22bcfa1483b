"""Dilated depth-wise convolution, fast on a CPU too.

Legend: B images, C channels, (H, W) grid, d dilation.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DilatedDepthwiseConv(nn.Conv2d):
    """A depth-wise 3x3 convolution of the input's size, with dilation.

    Pixels that lie d apart meet each other only: the grid is d x d interleaved grids, its phases,
    and on each of them the convolution is a plain one. CPU libraries have fast kernels for that one
    alone, and splitting and joining cost less than the difference. A GPU, and a network that is
    being compiled or exported, get the dilated convolution. The results are equal.
    """

    def __init__(self, channels: int, dilation: int, *, bias: bool = False) -> None:
        super().__init__(
            channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=bias
        )

    def forward(self, grid: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        built_into_a_graph = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if grid.device.type != "cpu" or self.dilation == (1, 1) or built_into_a_graph:
            return super().forward(grid)
        return self.by_phases(grid)

    def by_phases(self, grid: Tensor) -> Tensor:
        """The same, in phases wherever the grid is."""
        batch, _, height, width = grid.shape
        layout = _phases(batch, height, width, self.dilation[0], grid.device)
        rows = _Split.apply(_rows(grid), layout)
        phases = rows.view(*layout.shape, -1).permute(0, 3, 1, 2)
        phases = F.conv2d(phases, self.weight, self.bias, padding=1, groups=self.groups)
        rows = _Join.apply(_rows(phases), layout)
        return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


class _Phases(NamedTuple):
    """Where the pixels of a batch of grids lie in the batch of their phases.

    Attributes:
        shape: (B*d*d, H/d, W/d) of the phases, sizes rounded up.
        place: (B*H*W,) index of each pixel among the places of the phases.
        pixel: index of each place's pixel; of some pixel where there is none.
        empty: the places without a pixel, which stand for what is beyond the border.
    """

    shape: tuple[int, int, int]
    place: Tensor
    pixel: Tensor
    empty: Tensor


@lru_cache(maxsize=32)
def _phases(batch: int, height: int, width: int, d: int, device: torch.device) -> _Phases:
    rows, columns = -(-height // d), -(-width // d)
    pixel = torch.full((batch, rows * d, columns * d), -1, device=device)
    number = torch.arange(batch * height * width, device=device)
    pixel[:, :height, :width] = number.view(batch, height, width)
    cells = pixel.view(batch, rows, d, columns, d).permute(0, 2, 4, 1, 3).flatten()
    place = cells.argsort(stable=True)[-batch * height * width :]
    empty = (cells < 0).nonzero().flatten()
    return _Phases((batch * d * d, rows, columns), place, cells.clamp_min(0), empty)


def _rows(grid: Tensor) -> Tensor:
    """(B, C, H, W) -> (B*H*W, C); a view of a channels-last grid."""
    return grid.permute(0, 2, 3, 1).flatten(0, 2)


def _to_phases(rows: Tensor, layout: _Phases) -> Tensor:
    return rows.index_select(0, layout.pixel).index_fill_(0, layout.empty, 0)


# Every pixel has one place, so that splitting and joining are each other's gradients; autograd's
# own would add the rows up one by one.
class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: _Phases) -> Tensor:
        ctx.layout = layout
        return _to_phases(rows, layout)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.index_select(0, ctx.layout.place), None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, layout: _Phases) -> Tensor:
        ctx.layout = layout
        return rows.index_select(0, layout.place)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _to_phases(gradient, ctx.layout), None
