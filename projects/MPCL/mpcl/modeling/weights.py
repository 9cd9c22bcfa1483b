"""Reads encoder weights of every public kind, and loads ``MODEL.WEIGHTS``.

Known kinds of Mix Transformers, told apart by the name of the first convolution: the files of the
SegFormer authors (``mit_b5.pth``, or a segmentation checkpoint that contains such an encoder),
Hugging Face SegFormer (names on disk and in memory), and our own. All become the names of
:class:`~mpcl.modeling.mit.MixTransformer`. Encoders of timm translate their files themselves;
detectron2 does it for its ResNets. Opening a file never runs code from it.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from .mit import VARIANTS, MixTransformer
from .timm_backbone import TimmBackbone
from .weight_files import (
    State,
    faults,
    find_weight_file,
    load_checkpoint_file,
    read,
    refuse_code_in_pickle,
    some,
    unwrap,
)

BACKBONE = "backbone."
SEGFORMER, HUGGING_FACE, MPCL = "SegFormer", "Hugging Face", "MPCL"

# What may stand before an encoder key: data parallel, the student of a UDA checkpoint, a segmentor,
# Hugging Face. Anchored, so that "ema_model.backbone." and "imnet_model.backbone." are never taken
# for the student.
_PREFIX = re.compile(
    r"(?:module\.)?(?:model\.)?(?:backbone\.|segformer\.encoder\.|segformer\.|encoder\.)?"
)

_OUR_STEM = "stages.0.patch_embed.proj.weight"
_STEMS = {
    "patch_embed1.proj.weight": SEGFORMER,
    "patch_embeddings.0.proj.weight": HUGGING_FACE,
    "stages.0.patch_embeddings.proj.weight": HUGGING_FACE,
    _OUR_STEM: MPCL,
}

# Where a key lives -> where it lives with us; rows: SegFormer, Hugging Face on disk, in memory,
# ours.
_PLACES = {
    theirs: f"stages.{s}.{ours}."
    for s in range(4)
    for embed, block, norm in (
        (f"patch_embed{s + 1}.", f"block{s + 1}.", f"norm{s + 1}."),
        (f"patch_embeddings.{s}.", f"block.{s}.", f"layer_norm.{s}."),
        (f"stages.{s}.patch_embeddings.", f"stages.{s}.blocks.", f"stages.{s}.layer_norm."),
        (f"stages.{s}.patch_embed.", f"stages.{s}.blocks.", f"stages.{s}.norm."),
    )
    for theirs, ours in ((embed, "patch_embed"), (block, "blocks"), (norm, "norm"))
}

# Layers of a patch embedding or a block: ours <- the same in any of the kinds. "k" and "v" are
# joined to "kv" later.
_LAYERS = {
    theirs: ours
    for ours, names in {
        "proj": "proj",
        "norm": "norm layer_norm",
        "norm1": "norm1 layer_norm_1 layernorm_before",
        "norm2": "norm2 layer_norm_2 layernorm_after",
        "attn.q": "attn.q attention.self.query attention.q_proj",
        "attn.k": "attention.self.key attention.k_proj",
        "attn.v": "attention.self.value attention.v_proj",
        "attn.kv": "attn.kv",
        "attn.proj": "attn.proj attention.output.dense attention.o_proj",
        "attn.sr": "attn.sr attention.self.sr attention.sequence_reduction.sequence_reduction",
        "attn.norm": "attn.norm attention.self.layer_norm attention.sequence_reduction.layer_norm",
        "ffn.fc1": "ffn.fc1 mlp.fc1 mlp.dense1",
        "ffn.dwconv": "ffn.dwconv mlp.dwconv.dwconv",
        "ffn.fc2": "ffn.fc2 mlp.fc2 mlp.dense2",
    }.items()
    for theirs in names.split()
}


class Conversion(NamedTuple):
    """An encoder read from a foreign file, and what became of the file's tensors."""

    state: State  # our names, without "backbone."
    source: str  # SEGFORMER, HUGGING_FACE or MPCL
    left_out: tuple[str, ...]  # the file's other tensors: classifier, decode head, teacher


def convert(state: Mapping[str, Tensor]) -> Conversion:
    """Finds the encoder in a state dict of any known kind and renames it, joining keys and values.

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
    return Conversion(_join_keys_and_values(renamed), source, tuple(left_out))


def to_backbone_state(state: Mapping[str, Tensor]) -> State:
    """The encoder of a state dict of any known kind under our names; see :func:`convert`."""
    return convert(state).state


def infer_variant(state: Mapping[str, Tensor]) -> str:
    """Variant ("b0" ... "b5") of an encoder under our names, told by its widths and depths.

    Raises:
        ValueError: they are those of no known variant.
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

    Raises:
        ValueError: another variant of the Mix Transformer (both are named), or missing, unknown or
            misshapen tensors.
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


def save_converted(src: str | Path, dst: str | Path) -> Conversion:
    """Writes the encoder of ``src`` (any known kind) to ``dst`` in the layout of our checkpoints.

    Raises:
        ValueError: ``dst`` does not end in .pth, or ``src`` holds no complete encoder of a known
            kind.
    """
    if Path(dst).suffix != ".pth":
        raise ValueError(f"dst must end in .pth, got {dst}")
    conversion = convert(load_checkpoint_file(src))
    with torch.device("meta"):
        expected = MixTransformer(variant=infer_variant(conversion.state)).state_dict()
    check_backbone_state(conversion.state, expected)
    torch.save(
        {"model": {BACKBONE + name: tensor for name, tensor in conversion.state.items()}}, dst
    )
    return conversion


class WeightsCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer that also starts from foreign encoder weights.

    Checkpoints of our own load as they are, training state included. From a foreign file, or folder
    of Hugging Face, every encoder tensor goes to ``backbone.*`` and nothing else is used: those of
    SegFormer for the Mix Transformer, those of timm for its encoders, and detectron2's .pkl files
    for its ResNets.

    Raises (on load):
        ValueError: the file holds nothing that this model knows, not a complete encoder, or another
            one; the message begins with the file's name.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return super().load(find_weight_file(path) if path else path, *args, **kwargs)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        finally:
            # detectron2 leaves this set when a load fails, and then refuses every later load.
            self._parsed_url_during_load = None

    def _load_file(self, filename: str) -> dict[str, Any]:
        if filename.endswith(".pkl"):
            refuse_code_in_pickle(filename)
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        content = read(f)
        return content if "model" in content else {"model": unwrap(content)}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get(
            "matching_heuristics", False
        ):  # detectron2's model zoo, which it matches itself
            return self._load_zoo(checkpoint)
        model = self.model.state_dict()
        state = {
            name.removeprefix("module."): tensor for name, tensor in checkpoint["model"].items()
        }
        if not model.keys() & state.keys():
            return self._load_foreign(checkpoint, model)
        if backbone := _backbone(state):
            check_backbone_state(backbone, _backbone(model))
        return self._load_some(checkpoint)

    def _load_zoo(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("__author__") == "Caffe2":
            self.logger.warning(
                "These weights are for BGR images whose standard deviation is 1; images are RGB "
                "here. Prefer a ResNet that torchvision or timm trained (docs/BACKBONES.md)."
            )
        return self._load_some(checkpoint)

    def _load_foreign(self, checkpoint: dict[str, Any], model: State) -> Any:
        encoder, kind, left_out = _encoder_of(
            unwrap(checkpoint["model"]), self.model.backbone, _backbone(model)
        )
        checkpoint["model"] = {BACKBONE + name: tensor for name, tensor in encoder.items()}
        incompatible = self._load_some(checkpoint)
        self.logger.info(
            "%s: %d backbone tensors matched; %d tensors of the model keep their initial values; "
            "%d tensors of the file are left out%s",
            kind,
            len(encoder),
            len(incompatible.missing_keys),
            len(left_out),
            f" ({some(left_out)})" if left_out else "",
        )
        incompatible.missing_keys.clear()  # said above; a list of them would read as a fault
        return incompatible

    def _load_some(self, checkpoint: dict[str, Any]) -> Any:
        """Loads as detectron2 does, but refuses to load nothing."""
        incompatible = super()._load_model(checkpoint)
        rejected = len(incompatible.missing_keys) + len(incompatible.incorrect_shapes)
        if rejected >= len(self.model.state_dict()):
            raise ValueError("no tensor of the weights fits the model")
        return incompatible


def load_encoder_(encoder: nn.Module, path: str) -> None:
    """Gives an encoder alone the weights that a model with this backbone would start from.

    Raises:
        ValueError: see :class:`WeightsCheckpointer`.
    """
    holder = nn.Module()
    holder.backbone = encoder
    WeightsCheckpointer(holder).load(path)


def _encoder_of(
    file: State, backbone: nn.Module, expected: State
) -> tuple[State, str, Sequence[str]]:
    """What a foreign file holds for this backbone, in words what it is, and the file's rest."""
    if isinstance(backbone, TimmBackbone):
        state, left_out = backbone.translate(file)
        return state, f"timm {backbone.name}", left_out
    if not isinstance(backbone, MixTransformer):
        raise ValueError(
            f"{type(backbone).__name__} starts from detectron2's .pkl files and from checkpoints "
            f"of this project; the file holds {some(file)}"
        )
    conversion = convert(file)
    check_backbone_state(conversion.state, expected)
    kind = f"{conversion.source} MiT-{infer_variant(conversion.state)}"
    return conversion.state, kind, conversion.left_out


def _find_stem(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """Prefix and kind of the encoder, both told by the name of its first convolution."""
    for name in state:
        prefix = _PREFIX.match(name)[0]  # type: ignore[index]  # matches at least the empty string
        if name.removeprefix(prefix) in _STEMS:
            return prefix, _STEMS[name.removeprefix(prefix)]
    raise ValueError(
        f"no Mix Transformer among {len(state)} tensors ({some(state)}); known are files of the "
        "SegFormer authors (patch_embed1.proj.weight), Hugging Face SegFormer "
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
    inside = re.fullmatch(r"(\d+\.)?(?:(.+)\.)?(weight|bias)", name.removeprefix(place))
    if inside is None or (inside[2] is not None and inside[2] not in _LAYERS):
        return None
    layer = f"{_LAYERS[inside[2]]}." if inside[2] else ""
    return _PLACES[place] + (inside[1] or "") + layer + inside[3]


def _join_keys_and_values(state: State) -> State:
    joined = {}
    for name, tensor in state.items():
        if ".attn.k." in name:
            value = state.get(name.replace(".attn.k.", ".attn.v."))
            if value is None:
                raise ValueError(
                    f"the weights hold {name} but not the value projection that belongs to it"
                )
            joined[name.replace(".attn.k.", ".attn.kv.")] = torch.cat([tensor, value])
        elif ".attn.v." not in name:
            joined[name] = tensor
    return joined


def _backbone(state: Mapping[str, Tensor]) -> State:
    return {
        name.removeprefix(BACKBONE): tensor
        for name, tensor in state.items()
        if name.startswith(BACKBONE)
    }
