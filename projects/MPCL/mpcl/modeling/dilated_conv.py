"""Dilated depth-wise convolution, fast on a CPU too.

Legend: B images, C channels, (H, W) grid, d dilation.
"""

from functools import lru_cache

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

    def __init__(self, channels: int, dilation: int) -> None:
        super().__init__(
            channels, channels, 3, padding=dilation, dilation=dilation, groups=channels, bias=False
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
        pixels, places = _phases(batch, height, width, self.dilation[0], grid.device)
        rows = F.pad(_rows(grid), (0, 0, 0, 1))  # the last one is what lies beyond the border
        # Gathers rows; the gradient of an index would be much slower.
        phases = F.embedding(pixels, rows, padding_idx=-1).permute(0, 3, 1, 2)
        phases = F.conv2d(phases, self.weight, padding=1, groups=self.groups)
        return F.embedding(places, _rows(phases)).permute(0, 3, 1, 2)


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # what a prediction has made, training uses, too
def _phases(
    batch: int, height: int, width: int, d: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Which pixel each place of the phases shows, (B*d*d, H/d, W/d) with sizes rounded up, B*H*W
    where there is none; and the place of each pixel, (B, H, W)."""
    pixels = torch.arange(batch * height * width, device=device).view(batch, 1, height, width)
    padded = F.pad(pixels, (0, -width % d, 0, -height % d), value=pixels.numel())
    shown = F.pixel_unshuffle(padded, d).flatten(0, 1)
    return shown, shown.flatten().argsort()[: pixels.numel()].view(batch, height, width)


def _rows(grid: Tensor) -> Tensor:
    """(B, C, H, W) -> (B*H*W, C); a view of a channels-last grid."""
    return grid.permute(0, 2, 3, 1).flatten(0, 2)
