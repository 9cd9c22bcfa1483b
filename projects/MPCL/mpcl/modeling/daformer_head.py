"""Decode head of DAFormer (arXiv:2111.14887): fuses all encoder levels, then classifies pixels.

Legend: B images, (h, w) grid of the finest level (stride 4).
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from torch import Tensor, nn

from .dilated_conv import DilatedDepthwiseConv


class LevelFusion(nn.Module):
    """Embeds each encoder level linearly, resizes it to the finest grid, and stacks the levels."""

    def __init__(self, input_shape: dict[str, ShapeSpec], channels: int) -> None:
        """
        Args:
            input_shape: the levels to fuse; they are concatenated in the order of their stride.
            channels: of each level's embedding.
        Raises: ValueError: ``input_shape`` is empty.
        """
        super().__init__()
        if not input_shape:
            raise ValueError("input_shape must not be empty")
        self.in_features = sorted(input_shape, key=lambda name: input_shape[name].stride)
        self.embed = nn.ModuleList(
            nn.Linear(input_shape[name].channels, channels) for name in self.in_features
        )

    def stack(self, features: dict[str, Tensor]) -> Tensor:
        """Level name -> (B, C_level, h_level, w_level); further entries are not read. Returns
        (B, levels * channels, h, w)."""
        size = features[self.in_features[0]].shape[2:]
        # Embedding and resize are linear and commute; embedding the small grid costs less.
        levels = []
        for name, linear in zip(self.in_features, self.embed):
            # On the channels; free of copies for channels-last grids.
            embedded = linear(features[name].permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            levels.append(_resize(embedded, size))
            if levels[-1].requires_grad:
                levels[-1].register_hook(_dense)
        return torch.cat(levels, dim=1)


class ContextAwareFusion(LevelFusion):
    """All encoder levels -> one map of the finest level's size that sees several context sizes.

    Parallel convolutions of growing dilation (depth-wise separable, except for the 1x1 of dilation
    1) look at the stacked levels; a dense 3x3 convolution fuses the branches. There is no
    image-pooling branch.

    Source: Hoyer et al., DAFormer (CVPR 2022), Sec. 3.2. Differs from it in: nothing.
    """

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        channels: int = 256,
        dilations: Sequence[int] = (1, 6, 12, 18),
        norm: str = "BN",
    ) -> None:
        """
        Args:
            input_shape: see :class:`LevelFusion`.
            channels: of the embeddings, of every branch and of the output.
            dilations: one branch each.
            norm: detectron2 name of the normalisation behind each convolution.
        Raises: ValueError: ``input_shape`` or ``dilations`` is empty.
        """
        super().__init__(input_shape, channels)
        if not dilations:
            raise ValueError("dilations must not be empty")
        stacked = channels * len(self.in_features)
        self.branches = nn.ModuleList(
            _branch(stacked, channels, dilation, norm) for dilation in dilations
        )
        self.bottleneck = conv_norm_relu(channels * len(dilations), channels, 3, norm)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Levels, see :meth:`LevelFusion.stack` -> (B, channels, h, w), non-negative."""
        stacked = self.stack(features)
        return self.bottleneck(torch.cat([branch(stacked) for branch in self.branches], dim=1))


@SEM_SEG_HEADS_REGISTRY.register()
class DAFormerHead(nn.Module):
    """Context-aware fusion, channel dropout and a 1x1 classifier; logits at stride 4.

    The loss is no part of the head: the student sees several views in one iteration, and each has
    its own.
    """

    @configurable
    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        channels: int = 256,
        dropout: float = 0.1,
        dilations: Sequence[int] = (1, 6, 12, 18),
        norm: str = "BN",
    ) -> None:
        """
        Args:
            input_shape: the encoder levels to read.
            num_classes: channels of the logits.
            channels: of the fused features.
            dropout: probability of zeroing a whole channel before the classifier, in train mode.
            dilations: of the parallel branches of the fusion.
            norm: detectron2 name of the normalisation in the fusion; the published results use
                plain "BN".
        """
        super().__init__()
        self.fusion = ContextAwareFusion(
            input_shape, channels=channels, dilations=dilations, norm=norm
        )
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = pixel_classifier(channels, num_classes)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        head = cfg.MODEL.SEM_SEG_HEAD
        return {
            "input_shape": {name: input_shape[name] for name in head.IN_FEATURES},
            "num_classes": head.NUM_CLASSES,
            "channels": head.CONVS_DIM,
            "dropout": head.DROPOUT,
            "dilations": head.DILATIONS,
            "norm": head.NORM,
        }

    def fuse(self, features: dict[str, Tensor]) -> Tensor:
        """Encoder levels -> fused features (B, channels, h, w), before dropout and classifier."""
        return self.fusion(features)

    def classify(self, fused: Tensor) -> Tensor:
        """Fused features (B, channels, h, w) -> logits (B, num_classes, h, w)."""
        return self.classifier(self.dropout(fused))

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Encoder levels -> logits (B, num_classes, h, w); resizing them is the caller's."""
        return self.classify(self.fuse(features))


def pixel_classifier(channels: int, num_classes: int) -> nn.Conv2d:
    """1x1 convolution to class logits, initialised as in the baselines."""
    classifier = nn.Conv2d(channels, num_classes, 1)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return classifier


def _resize(grid: Tensor, size: torch.Size) -> Tensor:
    if grid.shape[2:] == size:
        return grid
    # CUDA's autocast resizes in float32, and each branch would cast the stack on its own.
    return F.interpolate(grid, size=size, mode="bilinear", align_corners=False).to(grid.dtype)


def _dense(gradient: Tensor) -> Tensor:
    """A level's slice of the stack's gradient, without the gaps that make resizing back slow."""
    return gradient.contiguous(memory_format=torch.channels_last)


def conv_norm_relu(in_channels: int, channels: int, kernel: int, norm: str) -> nn.Sequential:
    """A same-size convolution unit; its parts are named as in released checkpoints (conv, bn)."""
    conv = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, bias=False)
    return _norm_relu(conv, norm)


def _norm_relu(conv: nn.Conv2d, norm: str) -> nn.Sequential:
    """The unit around a convolution without bias."""
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(
        OrderedDict(conv=conv, bn=get_norm(norm, conv.out_channels), relu=nn.ReLU(inplace=True))
    )


def _branch(in_channels: int, channels: int, dilation: int, norm: str) -> nn.Sequential:
    """1x1 unit for dilation 1; else a depth-wise and a point-wise unit, both with norm and ReLU."""
    if dilation == 1:
        return conv_norm_relu(in_channels, channels, 1, norm)
    depthwise = _norm_relu(DilatedDepthwiseConv(in_channels, dilation), norm)
    return nn.Sequential(
        OrderedDict(dw=depthwise, pw=conv_norm_relu(in_channels, channels, 1, norm))
    )
