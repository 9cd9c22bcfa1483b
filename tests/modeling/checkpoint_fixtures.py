"""Original parameter names, written apart from the package, and the fill of the golden values."""

import re

import torch
from torch import Tensor, nn


def official_encoder_name(name: str) -> str:
    """``stages.0.blocks.1.ffn.dwconv.bias`` -> ``block1.1.mlp.dwconv.dwconv.bias``: mit_bX.pth."""
    stage, rest = re.fullmatch(r"stages\.(\d)\.(.+)", name).groups()
    number = int(stage) + 1
    if rest.startswith("blocks."):
        rest = rest.removeprefix("blocks.").replace("ffn.dwconv", "ffn.dwconv.dwconv")
        return f"block{number}.{rest.replace('ffn.', 'mlp.')}"
    place, layer = rest.split(".", 1)
    return f"{place}{number}.{layer}"


def official_head_name(name: str) -> str:
    """``fusion.branches.1.dw.bn.bias`` -> ``fuse_layer.aspp_modules.1.depthwise_conv.bn.bias``."""
    name = re.sub(r"^fusion\.embed\.(\d)", r"embed_layers.\1.proj", name)
    name = re.sub(r"^fusion\.branches", "fuse_layer.aspp_modules", name)
    name = re.sub(r"^fusion\.bottleneck", "fuse_layer.bottleneck", name)
    name = name.replace(".dw.", ".depthwise_conv.").replace(".pw.", ".pointwise_conv.")
    return name.replace("classifier", "conv_seg")


def official_attention_name(name: str) -> str:
    """``fusion.bn.bias`` -> ``fuse_layer.bn.bias``, of HRDA's scale attention."""
    name = name.replace("embed.", "fusion.embed.") if name.startswith("embed.") else name
    name = name.replace("fusion.conv.", "fuse_layer.conv.").replace("fusion.bn.", "fuse_layer.bn.")
    return official_head_name(name)


def official_segmentor(model: nn.Module) -> dict[str, Tensor]:
    """A segmentor's state under the names of DAFormer's or HRDA's released checkpoints, filled with
    the golden values."""
    attention = getattr(model, "scale_attention", None)
    head = "decode_head." if attention is None else "decode_head.head."
    parts = [
        ("backbone.", model.backbone, official_encoder_name),
        (head, model.sem_seg_head, official_head_name),
    ]
    if attention is not None:
        parts.append(("decode_head.scale_attention.", attention, official_attention_name))
    names = {
        prefix + rename(name): tensor
        for prefix, module, rename in parts
        for name, tensor in module.state_dict().items()
    }
    return {
        name: golden_value(name, tensor) if tensor.is_floating_point() else torch.tensor(80000)
        for name, tensor in names.items()
    }


def golden_value(key: str, like: Tensor) -> Tensor:
    """A tensor for an official ``key``: sin(0.7 i + phase of the key), scaled by its role."""
    phase = 0.2 * (sum(key.encode("ascii")) % 31)
    index = torch.arange(like.numel(), dtype=torch.float64)
    wave = torch.sin(0.7 * index + phase).reshape(like.shape)
    if like.dim() < 2 and key.endswith(("weight", "running_var")):
        return 1 + 0.1 * wave
    return 0.05 * wave


def fill_golden_(module: nn.Module, prefix: str, official_name) -> nn.Module:
    """Makes ``module`` float64 and gives every tensor the value of its official name."""
    module.double()
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            tensor.copy_(golden_value(prefix + official_name(name), tensor))
    return module


def fill_golden_network_(model: nn.Module) -> nn.Module:
    """A segmentor with the golden values of DAFormer or HRDA, in float64."""
    attention = getattr(model, "scale_attention", None)
    head = "decode_head." if attention is None else "decode_head.head."
    fill_golden_(model.backbone, "backbone.", official_encoder_name)
    fill_golden_(model.sem_seg_head, head, official_head_name)
    if attention is not None:
        fill_golden_(attention, "decode_head.scale_attention.", official_attention_name)
    return model


def golden_images(height: int, width: int) -> Tensor:
    index = torch.arange(2 * 3 * height * width, dtype=torch.float64)
    return 2 * torch.sin(0.01 * index).reshape(2, 3, height, width)


def summary(x: Tensor) -> list[float]:
    """Mean, biased standard deviation, largest magnitude, first and last element."""
    flat = x.detach().flatten()
    numbers = [flat.mean(), flat.std(correction=0), flat.abs().max(), flat[0], flat[-1]]
    return [number.item() for number in numbers]
