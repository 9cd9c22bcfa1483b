"""Any hierarchical or plain encoder of timm as a backbone with levels at strides 4, 8, 16 and 32.

Legend: B images, (H, W) pixels, D channels of a plain vision transformer.
"""

import sys
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import timm
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import Conv2dSame, LayerNorm2d, PatchEmbed
from torch import Tensor, nn

from ..utils.state_dict import faults

STRIDES = {"stage1": 4, "stage2": 8, "stage3": 16, "stage4": 32}
PATCH = 16  # pixels a side of the patches of every plain vision transformer
MULTIPLE = 32  # images are padded to it: every level then halves the one before exactly

# How timm's families are asked for images of any size. The union comes first, as the Swins of some
# releases take any argument and heed the second only.
_DYNAMIC, _NOT_STRICT = {"dynamic_img_size": True}, {"strict_img_size": False}
_ANY_SIZE: tuple[dict[str, bool], ...] = (_DYNAMIC | _NOT_STRICT, _DYNAMIC, _NOT_STRICT, {})


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> "TimmBackbone":
    """The encoder MODEL.TIMM.NAME with random weights; see :class:`TimmBackbone`."""
    return TimmBackbone(
        cfg.MODEL.TIMM.NAME,
        drop_path=cfg.MODEL.BACKBONE.DROP_PATH,
        grad_checkpointing=cfg.MODEL.BACKBONE.CHECKPOINT,
    )


class TimmBackbone(Backbone):
    """An encoder of timm, unchanged, and what brings its maps to four layer-normalised levels.

    Encoders with maps at all four strides (ConvNeXt, Swin, PVTv2, ResNet) give these. A plain
    vision transformer (ViT, DINOv2, DINOv3, EVA-02) has one map, its last block's tokens behind the
    final norm: a simple feature pyramid (Li et al., ViTDet, arXiv:2203.16527) makes four of it, by
    transposed convolutions (x4, x2), as it is, and by max-pooling (/2). Differs from ViTDet in: no
    convolutions behind, as the decode head embeds each level itself; the deepest level therefore
    has no random weights, and can be compared with a frozen copy of the encoder.

    Transformers of other patch sizes than 16 are built with 16, on the grid that their positional
    embedding was trained for; :meth:`translate` resamples the patch embedding.

    Nothing is ever downloaded.

    Attributes:
        timm: timm's model without its classifier; its parameters have timm's published names.
    """

    def __init__(
        self, name: str, *, drop_path: float = 0.0, grad_checkpointing: bool = False
    ) -> None:
        """
        Args:
            name: of a model of timm; a tag behind a dot says whose normalisation is meant, and
                changes no weight.
            drop_path: probability, in [0, 1), of dropping a branch of the last block; it grows from
                0 over the blocks and is active in train mode only.
            grad_checkpointing: compute each block (stage) again in the backward pass instead of
                keeping its activations.
        Raises: ValueError: timm has no such model, ``drop_path`` is above 0 for a model without
            it, or the model cannot give four levels, or only for images of one size.
        """
        super().__init__()
        check_name(name)
        self.name = name
        rate = {"drop_path_rate": drop_path} if drop_path else {}
        self.timm = _create(name, **rate)
        reductions = [info["reduction"] for info in self.timm.feature_info]
        self.is_plain = len(set(reductions)) == 1 and hasattr(self.timm, "patch_embed")
        if self.is_plain and reductions[0] != PATCH:
            _set_patch_size(name, self.timm)
        indices = [len(reductions) - 1] if self.is_plain else _level_indices(name, reductions)
        widths = [self.timm.feature_info[index]["num_chs"] for index in indices]

        whole = self.timm.state_dict().keys()
        self.indices = self.timm.prune_intermediate_layers(indices, prune_norm=not self.is_plain)
        if hasattr(self.timm, "head"):
            self.timm.head = nn.Identity()  # ConvNeXt's has a norm even without classes
        self._pruned = whole - self.timm.state_dict().keys()
        if grad_checkpointing:
            self.timm.set_grad_checkpointing(True)
        for module in self.timm.modules():
            if isinstance(module, Conv2dSame):
                module.__class__ = _PaddedConv2d

        if self.is_plain:
            width = widths[0]
            widths = [width // 4, width // 2, width, width]
            self.resize = nn.ModuleList([_up4(width), _up2(width), nn.Identity(), nn.MaxPool2d(2)])
        else:
            self.resize = nn.ModuleList(nn.Identity() for _ in STRIDES)
        self.norms = nn.ModuleList(LayerNorm2d(width) for width in widths)
        self._out_features = list(STRIDES)
        self._out_feature_channels = dict(zip(STRIDES, widths))
        self._out_feature_strides = dict(STRIDES)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (B, 3, H, W) normalised RGB; padded inside with zeros, the mean colour, to
                multiples of 32.
        Returns: {"stage1": (B, C1, ceil(H/4), ceil(W/4)), ..., "stage4": (B, C4, ceil(H/32),
            ceil(W/32))}, each layer-normalised over its channels.
        """
        height, width = images.shape[-2:]
        maps = self.timm.forward_intermediates(
            F.pad(images, (0, -width % MULTIPLE, 0, -height % MULTIPLE)),
            indices=self.indices,
            norm=self.is_plain,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        if self.is_plain:
            maps = maps * len(STRIDES)
        return {
            # Not -(-height // stride): ONNX divides towards zero.
            name: norm(resize(grid))[
                ..., : (height + stride - 1) // stride, : (width + stride - 1) // stride
            ]
            for (name, stride), grid, resize, norm in zip(
                STRIDES.items(), maps, self.resize, self.norms
            )
        }

    def translate(self, published: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
        """A state dict as published by timm, or by the encoder's authors where timm knows it, for
        this backbone.

        Patch and positional embeddings of other sizes are resampled by timm's own rules.

        Returns: the state under this backbone's names, without its levels' own layers; and the
            file's names that are not used (the classifier).
        Raises: ValueError: it is no complete state of this encoder.
        """
        module = sys.modules[type(self.timm).__module__]
        convert = getattr(module, "checkpoint_filter_fn", lambda state, model: state)
        expected = self.timm.state_dict()
        try:
            state = convert(dict(published), self.timm)
        except (AttributeError, KeyError, IndexError, RuntimeError):
            state = dict(published)  # of something else than timm's rules know, as is said below
        # Tensors beside the encoder (classifier, mask token) are left out, further blocks are not.
        parts = {name.split(".")[0] for name in expected}
        left_out = [
            name
            for name in state.keys() - expected.keys()
            if name in self._pruned or name.split(".")[0] not in parts
        ]
        state = {name: tensor for name, tensor in state.items() if name not in left_out}
        if listing := faults(state, expected):
            raise ValueError(
                f"the weights are not those of {self.name} (MODEL.TIMM.NAME): {listing}"
            )
        return {f"timm.{name}": tensor for name, tensor in state.items()}, sorted(left_out)


class _PaddedConv2d(Conv2dSame):
    """TensorFlow's "same" padding, computed from the kernel alone, where timm asks for each image's
    size: a stride divides every map of images that are multiples of 32. Exporters of a graph for
    any size would else drown in expressions of sizes."""

    def forward(self, maps: Tensor) -> Tensor:
        padding: list[int] = []
        for kernel, stride, dilation in zip(self.kernel_size, self.stride, self.dilation):
            total = max(0, dilation * (kernel - 1) + 1 - stride)
            padding = [total // 2, total - total // 2, *padding]  # F.pad begins with the width
        padded = F.pad(maps, padding)
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def check_name(name: str) -> None:
    """Raises ValueError, with similar names, where timm has no model of this name."""
    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        similar = get_close_matches(architecture, timm.list_models(), n=3)
        raise ValueError(
            f"MODEL.TIMM.NAME is {name!r}, which timm {timm.__version__} does not have"
            + (f"; did you mean {', '.join(similar)}?" if similar else "")
        )


def pixel_statistics(name: str) -> tuple[list[float], list[float]]:
    """Mean and standard deviation, RGB, in [0, 255], of the images that a model of timm was trained
    with; ImageNet's where timm names none.

    Raises: ValueError: timm has no such model.
    """
    check_name(name)
    cfg = timm.get_pretrained_cfg(name)
    mean = IMAGENET_DEFAULT_MEAN if cfg is None else cfg.mean
    std = IMAGENET_DEFAULT_STD if cfg is None else cfg.std
    return [round(255 * value, 4) for value in mean], [round(255 * value, 4) for value in std]


def _create(name: str, **options: Any) -> nn.Module:
    """timm's model without classifier, for images of any size."""
    for any_size in _ANY_SIZE:
        try:
            model = timm.create_model(name, pretrained=False, num_classes=0, **any_size, **options)
            break
        except TypeError as error:
            if "drop_path_rate" in str(error):
                raise ValueError(
                    f"{name} (MODEL.TIMM.NAME) has no stochastic depth; expected "
                    f"MODEL.BACKBONE.DROP_PATH 0.0, got {options['drop_path_rate']}"
                ) from error
            if not any(key in str(error) for key in any_size):
                raise ValueError(f"{name} (MODEL.TIMM.NAME) cannot be built: {error}") from error
    if not any_size and model.pretrained_cfg.get("fixed_input_size"):
        raise ValueError(f"{name} (MODEL.TIMM.NAME) takes images of one size only")
    if not hasattr(model, "forward_intermediates"):
        raise ValueError(
            f"{name} (MODEL.TIMM.NAME) gives no intermediate features in timm {timm.__version__}"
        )
    return model


def _set_patch_size(name: str, model: nn.Module) -> None:
    """Patches of 16 pixels on the grid that the positional embedding was trained for."""
    if isinstance(model.patch_embed, PatchEmbed) and hasattr(model, "set_input_size"):
        height, width = model.patch_embed.grid_size
        model.set_input_size(img_size=(PATCH * height, PATCH * width), patch_size=PATCH)
    else:
        raise ValueError(f"{name} (MODEL.TIMM.NAME) cannot be built with patches of {PATCH} pixels")


def _level_indices(name: str, reductions: list[int]) -> list[int]:
    """Where the last map of each of our strides stands among timm's."""
    if missing := set(STRIDES.values()) - set(reductions):
        raise ValueError(
            f"{name} (MODEL.TIMM.NAME) has maps at strides {sorted(set(reductions))}; "
            f"{sorted(missing)} are missing. Expected 4, 8, 16 and 32, or a vision transformer"
        )
    last = {reduction: index for index, reduction in enumerate(reductions)}
    return [last[stride] for stride in STRIDES.values()]


def _up2(width: int) -> nn.Module:
    return nn.ConvTranspose2d(width, width // 2, kernel_size=2, stride=2)


def _up4(width: int) -> nn.Module:
    return nn.Sequential(_up2(width), LayerNorm2d(width // 2), nn.GELU(), _up2(width // 2))
