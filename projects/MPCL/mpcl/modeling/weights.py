"""Reads encoder weights of every public kind, and loads ``MODEL.WEIGHTS``.

Known kinds, told apart by the name of the first convolution: the files of the SegFormer authors
(``mit_b5.pth``, or a segmentation checkpoint that contains such an encoder), Hugging Face SegFormer
(names on disk and in memory), and our own. All become the names of
:class:`~mpcl.modeling.mit.MixTransformer`. Opening a file never runs code from it.
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils.file_io import PathManager
from safetensors.torch import load_file
from torch import Tensor

from .mit import VARIANTS, MixTransformer

State = dict[str, Tensor]

BACKBONE = "backbone."
SEGFORMER, HUGGING_FACE, MPCL = "SegFormer", "Hugging Face", "MPCL"

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

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


def load_checkpoint_file(path: str | Path) -> State:
    """Tensors, on the CPU, of a .pth, .bin or .safetensors file or URL, or a Hugging Face folder.

    A state dict nested under ``state_dict`` or ``model`` is unwrapped.

    Raises:
        ValueError: the folder holds no weight file, or the file holds objects other than tensors
            and containers, or no tensors.
    """
    return _unwrap(_read(PathManager.get_local_path(find_weight_file(path))))


def find_weight_file(path: str | Path) -> str:
    """The weight file inside a Hugging Face folder; any other path, or URL, as it is.

    Raises:
        FileNotFoundError: there is nothing at a path of this machine.
        ValueError: a folder holds no weight file.
    """
    if not Path(path).is_dir():
        if "://" not in str(path) and not Path(path).exists():
            raise FileNotFoundError(
                f"no weights at {path}: put SegFormer's mit_b0.pth ... mit_b5.pth there, or name a "
                "file or a Hugging Face folder with MODEL.WEIGHTS"
            )
        return str(path)
    for name in _WEIGHT_FILES:
        if (Path(path) / name).is_file():
            return str(Path(path) / name)
    raise ValueError(f"no weights in folder {path}: expected one of {', '.join(_WEIGHT_FILES)}")


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
    """Compares an encoder's names and shapes with those of the one that is to receive it.

    Raises:
        ValueError: another variant (both are named), or the same with missing, unknown or misshapen
            tensors.
    """
    found, configured = infer_variant(state), infer_variant(expected)
    if found != configured:
        raise ValueError(f"the weights are of MiT-{found}, but MODEL.MIT.VARIANT is {configured}")
    faults = {
        "missing": sorted(expected.keys() - state.keys()),
        "unknown": sorted(state.keys() - expected.keys()),
        "misshapen": [
            name
            for name in state.keys() & expected.keys()
            if state[name].shape != expected[name].shape
        ],
    }
    if any(faults.values()):
        listing = "; ".join(
            f"{len(names)} {fault} ({_some(names)})" for fault, names in faults.items() if names
        )
        raise ValueError(f"the weights of MiT-{found} do not fit: {listing}")


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

    Checkpoints of our own load as they are, training state included. From the files of the
    SegFormer authors and from Hugging Face SegFormer (a file or a folder) every encoder tensor goes
    to ``backbone.*`` and nothing else is used.

    Raises (on load):
        ValueError: the file holds nothing that this model knows, not a complete encoder, or one of
            another variant.
    """

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return super().load(find_weight_file(path) if path else path, *args, **kwargs)
        finally:
            # detectron2 leaves this set when a load fails, and then refuses every later load.
            self._parsed_url_during_load = None

    def _torch_load(self, f: str) -> dict[str, Any]:
        content = _read(f)
        return content if "model" in content else {"model": _unwrap(content)}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get(
            "matching_heuristics", False
        ):  # detectron2's model zoo, which it matches itself
            return self._load_some(checkpoint)
        model = self.model.state_dict()
        state = {
            name.removeprefix("module."): tensor for name, tensor in checkpoint["model"].items()
        }
        if not model.keys() & state.keys():
            return self._load_foreign(checkpoint, model)
        if BACKBONE + _OUR_STEM in model.keys() & state.keys():
            check_backbone_state(_backbone(state), _backbone(model))
        return self._load_some(checkpoint)

    def _load_foreign(self, checkpoint: dict[str, Any], model: State) -> Any:
        conversion = convert(_unwrap(checkpoint["model"]))
        check_backbone_state(conversion.state, _backbone(model))
        checkpoint["model"] = {BACKBONE + name: tensor for name, tensor in conversion.state.items()}
        incompatible = self._load_some(checkpoint)
        self.logger.info(
            "%s MiT-%s: %d backbone tensors matched; %d tensors of the model keep their initial "
            "values; %d tensors of the file are left out%s",
            conversion.source,
            infer_variant(conversion.state),
            len(conversion.state),
            len(incompatible.missing_keys),
            len(conversion.left_out),
            f" ({_some(conversion.left_out)})" if conversion.left_out else "",
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


def _read(path: str) -> dict[str, Any]:
    if path.endswith(".safetensors"):
        return load_file(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is no weight file, or holds objects that could run code when opened; expected "
            "tensors and plain containers"
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    return content


def _unwrap(content: Mapping[str, Any]) -> State:
    nested = content.get("state_dict", content.get("model", content))
    tensors = {name: value for name, value in nested.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"expected tensors, flat or under 'state_dict' or 'model'; found {_some(content)}"
        )
    return tensors


def _find_stem(state: Mapping[str, Tensor]) -> tuple[str, str]:
    """Prefix and kind of the encoder, both told by the name of its first convolution."""
    for name in state:
        prefix = _PREFIX.match(name)[0]  # type: ignore[index]  # matches at least the empty string
        if name.removeprefix(prefix) in _STEMS:
            return prefix, _STEMS[name.removeprefix(prefix)]
    raise ValueError(
        f"no Mix Transformer among {len(state)} tensors ({_some(state)}); known are files of the "
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


def _some(names: Any, limit: int = 3) -> str:
    names = list(names)
    return ", ".join(map(str, names[:limit])) + (", ..." if len(names) > limit else "")
