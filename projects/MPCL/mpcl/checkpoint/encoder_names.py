"""Names of Mix Transformer weights in every public file, translated into ours.

Known kinds, told apart by the name of the first convolution: the files of the SegFormer authors
(``mit_b5.pth``, or a segmentation checkpoint that contains such an encoder), OpenMMLab's files of
the same name, Hugging Face SegFormer (names on disk and in memory), and our own. All become the
names of :class:`~mpcl.modeling.mit.MixTransformer`.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ..modeling.mit import VARIANTS
from ..utils.state_dict import faults, some
from .weight_files import State

BACKBONE = "backbone."
MPCL = "MPCL"  # the source of our own checkpoints

# What may stand before an encoder key: data parallel, the student of a UDA checkpoint, a segmentor,
# Hugging Face. Anchored, so that "ema_model.backbone." and "imnet_model.backbone." are never taken
# for the student.
_PREFIX = re.compile(
    r"(?:module\.)?(?:model\.)?(?:backbone\.|segformer\.encoder\.|segformer\.|encoder\.)?"
)

_OUR_STEM = "stages.0.patch_embed.proj.weight"
_STEMS = {
    "patch_embed1.proj.weight": "SegFormer",
    "layers.0.0.projection.weight": "OpenMMLab SegFormer",
    "patch_embeddings.0.proj.weight": "Hugging Face",
    "stages.0.patch_embeddings.proj.weight": "Hugging Face",
    _OUR_STEM: MPCL,
}

# Where a key lives -> where it lives with us; rows: SegFormer, OpenMMLab, Hugging Face on disk, in
# memory, ours.
_PLACES = {
    theirs: f"stages.{s}.{ours}."
    for s in range(4)
    for embed, block, norm in (
        (f"patch_embed{s + 1}.", f"block{s + 1}.", f"norm{s + 1}."),
        (f"layers.{s}.0.", f"layers.{s}.1.", f"layers.{s}.2."),
        (f"patch_embeddings.{s}.", f"block.{s}.", f"layer_norm.{s}."),
        (f"stages.{s}.patch_embeddings.", f"stages.{s}.blocks.", f"stages.{s}.layer_norm."),
        (f"stages.{s}.patch_embed.", f"stages.{s}.blocks.", f"stages.{s}.norm."),
    )
    for theirs, ours in ((embed, "patch_embed"), (block, "blocks"), (norm, "norm"))
}

# Layers of a patch embedding or a block: ours <- the same in any of the kinds. "k" and "v" are
# joined to "kv" later, "qkv" is parted.
_LAYERS = {
    theirs: ours
    for ours, names in {
        "proj": "proj projection",
        "norm": "norm layer_norm",
        "norm1": "norm1 layer_norm_1 layernorm_before",
        "norm2": "norm2 layer_norm_2 layernorm_after",
        "attn.q": "attn.q attention.self.query attention.q_proj",
        "attn.k": "attention.self.key attention.k_proj",
        "attn.v": "attention.self.value attention.v_proj",
        "attn.kv": "attn.kv",
        "attn.qkv": "attn.attn.in_proj",
        "attn.proj": "attn.proj attn.attn.out_proj attention.output.dense attention.o_proj",
        "attn.sr": "attn.sr attention.self.sr attention.sequence_reduction.sequence_reduction",
        "attn.norm": "attn.norm attention.self.layer_norm attention.sequence_reduction.layer_norm",
        "ffn.fc1": "ffn.fc1 mlp.fc1 mlp.dense1 ffn.layers.0",
        "ffn.dwconv": "ffn.dwconv mlp.dwconv.dwconv ffn.layers.1",
        "ffn.fc2": "ffn.fc2 mlp.fc2 mlp.dense2 ffn.layers.4",
    }.items()
    for theirs in names.split()
}


class Conversion(NamedTuple):
    """An encoder read from a foreign file, and what became of the file's tensors."""

    state: State  # our names, without "backbone."
    source: str  # SegFormer, OpenMMLab SegFormer, Hugging Face, or MPCL
    left_out: tuple[str, ...]  # the file's other tensors: classifier, decode head, teacher


def convert(state: Mapping[str, Tensor]) -> Conversion:
    """Finds the encoder in a state dict of any known kind under our names and in our shapes.

    Raises:
        ValueError: no encoder of a known kind, or a key projection without its value projection.
    """
    prefix, source = _find_stem(state)
    renamed, left_out = {}, []
    for name, tensor in state.items():
        ours = _our_name(name, prefix)
        if ours is None:
            left_out.append(name)
        else:
            renamed[ours] = tensor
    return Conversion(_in_our_shapes(renamed), source, tuple(left_out))


def infer_variant(state: Mapping[str, Tensor]) -> str:
    """Variant ("b0" ... "b5") of an encoder under our names, told by its widths and depths.

    Raises: ValueError: they are those of no known variant.
    """
    blocks = {match[0] for name in state if (match := re.match(r"stages\.\d\.blocks\.\d+\.", name))}
    depths = tuple(sum(block.startswith(f"stages.{s}.") for block in blocks) for s in range(4))
    widths = tuple(len(state.get(f"stages.{s}.patch_embed.proj.bias", ())) for s in range(4))
    for name, variant in VARIANTS.items():
        if (widths, depths) == variant:
            return name
    known = "; ".join(f"{name} {tuple(variant)}" for name, variant in VARIANTS.items())
    raise ValueError(
        f"no Mix Transformer has channels, depths {(widths, depths)}; known are {known}"
    )


def check_backbone_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Compares a backbone's names and shapes with those of the one that is to receive it.

    Raises: ValueError: another variant of the Mix Transformer (both are named), or missing, unknown
        or misshapen tensors.
    """
    kind = "the backbone"
    if _OUR_STEM in expected:
        found, configured = infer_variant(state), infer_variant(expected)
        if found != configured:
            raise ValueError(
                f"the weights are of MiT-{found}, but MODEL.MIT.VARIANT is {configured}"
            )
        kind = f"MiT-{found}"
    if listing := faults(state, expected):
        raise ValueError(f"the weights of {kind} do not fit: {listing}")


def _find_stem(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """Prefix and kind of the encoder, both told by the name of its first convolution."""
    for name in state:
        prefix = _PREFIX.match(name)[0]  # type: ignore[index]  # matches at least the empty string
        if name.removeprefix(prefix) in _STEMS:
            return prefix, _STEMS[name.removeprefix(prefix)]
    raise ValueError(
        f"no Mix Transformer among {len(state)} tensors ({some(state)}); known are files of the "
        "SegFormer authors (patch_embed1.proj.weight), of OpenMMLab "
        "(layers.0.0.projection.weight), Hugging Face SegFormer "
        "(segformer.encoder.patch_embeddings.0.proj.weight) and "
        f"our checkpoints ({BACKBONE}{_OUR_STEM})"
    )


def _our_name(name: str, prefix: str) -> str | None:
    """Our name of an encoder tensor, None for any other tensor."""
    if not name.startswith(prefix):
        return None
    name = name.removeprefix(prefix)
    place = next((place for place in _PLACES if name.startswith(place)), None)
    if place is None:
        return None
    inside = re.fullmatch(r"(\d+\.)?(?:(.+)[._])?(weight|bias)", name.removeprefix(place))
    if inside is None or (inside[2] is not None and inside[2] not in _LAYERS):
        return None
    layer = f"{_LAYERS[inside[2]]}." if inside[2] else ""
    return _PLACES[place] + (inside[1] or "") + layer + inside[3]


def _in_our_shapes(state: State) -> State:
    """Keys are joined to values and parted from queries; 1x1 convolutions become linear layers."""
    joined = {}
    for name, tensor in state.items():
        if ".attn.k." in name:
            value = state.get(name.replace(".attn.k.", ".attn.v."))
            if value is None:
                raise ValueError(
                    f"the weights hold {name} but not the value projection that belongs to it"
                )
            joined[name.replace(".attn.k.", ".attn.kv.")] = torch.cat([tensor, value])
        elif ".attn.qkv." in name:
            query, *rest = tensor.chunk(3)
            joined[name.replace(".attn.qkv.", ".attn.q.")] = query
            joined[name.replace(".attn.qkv.", ".attn.kv.")] = torch.cat(rest)
        elif ".ffn.fc" in name and tensor.shape[2:] == (1, 1):
            joined[name] = tensor.flatten(1)
        elif ".attn.v." not in name:
            joined[name] = tensor
    return joined
