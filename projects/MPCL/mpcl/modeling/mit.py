"""Mix Transformer encoder B0-B5 (SegFormer, arXiv:2105.15203), backbone of DAFormer, HRDA and MIC.

Legend: B images, (H, W) grid of a stage, N = H * W tokens, C channels of a stage, R reduction
ratio.

Tokens (B, N, C) and a grid (B, C, H, W) in channels-last memory are the same bytes, so the two
views change into one another without a copy; every map this backbone returns is such a
channels-last view.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Variant(NamedTuple):
    """What differs between the sizes of the encoder; everything else is shared."""

    channels: tuple[int, int, int, int]
    depths: tuple[int, int, int, int]


VARIANTS = {
    "b0": Variant((32, 64, 160, 256), (2, 2, 2, 2)),
    "b1": Variant((64, 128, 320, 512), (2, 2, 2, 2)),
    "b2": Variant((64, 128, 320, 512), (3, 4, 6, 3)),
    "b3": Variant((64, 128, 320, 512), (3, 4, 18, 3)),
    "b4": Variant((64, 128, 320, 512), (3, 8, 27, 3)),
    "b5": Variant((64, 128, 320, 512), (3, 6, 40, 3)),
}
HEADS = (1, 2, 5, 8)
REDUCTIONS = (8, 4, 2, 1)
FFN_RATIO = 4
STRIDES = (4, 8, 16, 32)

# The released weights were trained with two different epsilons; one value for all of them shifts
# the features.
BLOCK_EPS = 1e-6  # the two norms of a block, the norm that ends a stage
CONV_EPS = 1e-5  # the norms behind a convolution: patch embedding, key and value reduction


def to_tokens(grid: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W, C); a view of a channels-last grid."""
    return grid.flatten(2).transpose(1, 2)


def to_grid(tokens: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H * W, C) -> (B, C, H, W) in channels-last memory; always a view."""
    # Unflattened first: of a batch of one, convolutions would not see that it is channels-last.
    return tokens.unflatten(1, size).permute(0, 3, 1, 2)


class OverlapPatchEmbed(nn.Module):
    """Convolution with overlapping windows, then a norm: image or grid -> tokens and (H, W)."""

    def __init__(self, in_channels: int, channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel, stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(channels, eps=CONV_EPS)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        x = self.proj(x)
        height, width = x.shape[2:]
        return self.norm(to_tokens(x)), (height, width)


class ReducedAttention(nn.Module):
    """Multi-head attention of all tokens over keys and values from a grid R times coarser per side.

    The reduction has no padding: rows and columns beyond the last full R x R cell give no key, only
    queries.
    """

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(channels, channels)
        self.kv = nn.Linear(channels, 2 * channels)  # output rows: all keys, then all values
        self.proj = nn.Linear(channels, channels)
        self.reduction = reduction
        if reduction > 1:
            self.sr = nn.Conv2d(channels, channels, reduction, reduction)
            self.norm = nn.LayerNorm(channels, eps=CONV_EPS)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        query = self.q(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
        if self.reduction > 1:
            reduced = self.norm(to_tokens(self.sr(to_grid(x, size))))
        else:
            reduced = x
        key, value = self.kv(reduced).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)  # (B, heads, N, C / heads)
        return self.proj(attended.transpose(1, 2).flatten(2))


class MixFFN(nn.Module):
    """Two linear layers; the depth-wise convolution between tells the tokens where they are."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = FFN_RATIO * channels
        self.fc1 = nn.Linear(channels, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        x = to_tokens(self.dwconv(to_grid(self.fc1(x), size)))
        return self.fc2(F.gelu(x))


class Block(nn.Module):
    """Pre-norm residual block: attention, then Mix-FFN."""

    def __init__(self, channels: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=BLOCK_EPS)
        self.attn = ReducedAttention(channels, heads, reduction)
        self.norm2 = nn.LayerNorm(channels, eps=BLOCK_EPS)
        self.ffn = MixFFN(channels)

    def forward(self, x: Tensor, size: tuple[int, int], kept: Tensor | None) -> Tensor:
        """
        Args:
            x: (B, N, C).
            kept: (2, B, 1, 1), factors of each image's two branches; None = 1.
        """
        attended = self.attn(self.norm1(x), size)
        x = x + (attended if kept is None else attended * kept[0])
        mixed = self.ffn(self.norm2(x), size)
        return x + (mixed if kept is None else mixed * kept[1])


class Stage(nn.Module):
    """One resolution: patch embedding, blocks, norm; its output is also the next stage's input."""

    def __init__(
        self, index: int, in_channels: int, channels: int, depth: int, checkpoint: bool
    ) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        kernel, stride = (7, 4) if index == 0 else (3, 2)
        self.patch_embed = OverlapPatchEmbed(in_channels, channels, kernel, stride)
        self.blocks = nn.ModuleList(
            Block(channels, HEADS[index], REDUCTIONS[index]) for _ in range(depth)
        )
        self.norm = nn.LayerNorm(channels, eps=BLOCK_EPS)

    def forward(self, x: Tensor, kept: Tensor | None) -> Tensor:
        """
        Args:
            x: images, or the grid of the stage before.
            kept: (blocks, 2, B, 1, 1), see :class:`Block`.
        """
        tokens, size = self.patch_embed(x)
        factors = [None] * len(self.blocks) if kept is None else kept.to(tokens.dtype)
        for block, own in zip(self.blocks, factors):
            if self.checkpoint and torch.is_grad_enabled():
                # Nothing in a block is random: there is no generator to be set back.
                tokens = checkpoint(
                    block, tokens, size, own, use_reentrant=False, preserve_rng_state=False
                )
            else:
                tokens = block(tokens, size, own)
        return to_grid(self.norm(tokens), size)


@BACKBONE_REGISTRY.register()
class MixTransformer(Backbone):
    """Hierarchical transformer encoder without positional embeddings; sizes need not divide by 32.

    Source: Xie et al., SegFormer (arXiv:2105.15203), with the layer-norm epsilons of the released
    weights. Differs from the released code in: nothing that changes a number.
    """

    @configurable
    def __init__(self, *, variant: str, drop_path: float = 0.1, checkpoint: bool = False) -> None:
        """
        Args:
            variant: "b0" ... "b5".
            drop_path: probability, in [0, 1), of dropping a branch of the last block; it grows
                linearly from 0 over all blocks of the encoder and is active in train mode only.
            checkpoint: keep what goes into a block rather than what is inside it for the backward,
                which computes the block again.
        Raises: ValueError: ``variant`` is unknown.
        """
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(
                f"variant (MODEL.MIT.VARIANT) {variant!r} is none of {', '.join(VARIANTS)}"
            )
        channels, depths = VARIANTS[variant]
        keep = 1 - torch.linspace(0, drop_path, sum(depths)) if drop_path else None
        self.register_buffer("keep", keep, persistent=False)
        self.stages = nn.ModuleList(
            Stage(s, (3, *channels)[s], channels[s], depths[s], checkpoint) for s in range(4)
        )
        self._out_features = [f"stage{s}" for s in range(1, 5)]
        self._out_feature_channels = dict(zip(self._out_features, channels))
        self._out_feature_strides = dict(zip(self._out_features, STRIDES))
        self.apply(_initialise)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            "variant": cfg.MODEL.MIT.VARIANT,
            "drop_path": cfg.MODEL.BACKBONE.DROP_PATH,
            "checkpoint": cfg.MODEL.BACKBONE.CHECKPOINT,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (B, 3, H, W) normalised RGB, any H and W of at least 32.
        Returns: {"stage1": (B, C1, ceil(H/4), ceil(W/4)), ..., "stage4": (B, C4, ceil(H/32),
            ceil(W/32))}, each layer-normalised over its channels and in channels-last memory.
        """
        kept = self._draw_kept(images.shape[0])
        features = {}
        for name, stage, own in zip(self._out_features, self.stages, kept):
            images = stage(images, own)
            features[name] = images
        return features

    def _draw_kept(self, batch: int) -> Sequence[Tensor | None]:
        """Stochastic depth, of all blocks in one draw: for each stage (blocks, 2, B, 1, 1) factors,
        0 where a branch is dropped, else one over the probability that it is kept."""
        if self.keep is None or not self.training:
            return [None] * len(self.stages)
        keep = self.keep.view(-1, 1, 1, 1, 1)
        drawn = torch.rand(len(keep), 2, batch, 1, 1, device=keep.device) < keep
        return (drawn / keep).split([len(stage.blocks) for stage in self.stages])


def _initialise(module: nn.Module) -> None:
    """Weights for training from scratch; pre-trained ones overwrite all of them."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        nn.init.zeros_(module.bias)
