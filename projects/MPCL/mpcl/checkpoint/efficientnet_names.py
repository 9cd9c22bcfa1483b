"""Names of the efficientnet_pytorch project (EfficientNet B0 to B7, Lite), translated into timm's.

Both keep one tensor for one tensor. There blocks are counted through the network, in timm within
their stage; and a block's layers have other names.
"""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from .weight_files import State

_STEM = "_conv_stem"
_OUTSIDE = {
    _STEM: "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_SQUEEZE = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
_INVERTED_RESIDUAL = _SQUEEZE | {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_DEPTHWISE_SEPARABLE = _SQUEEZE | {  # the first blocks, which do not expand
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}


def is_efficientnet(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict has the names of efficientnet_pytorch."""
    return f"{_STEM}.weight" in state


def to_timm_names(state: Mapping[str, Tensor], model: Iterable[str]) -> State:
    """The state dict under timm's names; names that are not known stay as they are.

    Args:
        state: of the efficientnet_pytorch project.
        model: names of the timm model's tensors; they tell how many blocks each stage has.
    Raises: ValueError: the model has another number of blocks, so that no block has a place.
    """
    blocks = [re.match(r"blocks\.(\d+)\.(\d+)\.", name) for name in model]
    places = sorted({(int(m[1]), int(m[2])) for m in blocks if m})
    count = len({name.split(".")[1] for name in state if name.startswith("_blocks.")})
    if count != len(places):
        raise ValueError(
            f"the file is an EfficientNet of {count} blocks, MODEL.TIMM.NAME has {len(places)}"
        )
    return {_timm_name(name, state, places): tensor for name, tensor in state.items()}


def _timm_name(name: str, state: Mapping[str, Tensor], places: list[tuple[int, int]]) -> str:
    match = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(_\w+)\.(\w+)", name)
    if match is None:
        return name
    index, layer, tensor = match.groups()
    if index is None:
        return f"{_OUTSIDE.get(layer, layer)}.{tensor}"
    expands = f"_blocks.{index}._expand_conv.weight" in state
    layers = _INVERTED_RESIDUAL if expands else _DEPTHWISE_SEPARABLE
    stage, block = places[int(index)]
    return f"blocks.{stage}.{block}.{layers.get(layer, layer)}.{tensor}"
