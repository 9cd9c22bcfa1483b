"""Models and encoders in the files of others: released DAFormer, HRDA, MIC; SegFormer; timm;
EfficientNet.

A UDA checkpoint holds the student under ``model.``, the teacher under ``ema_model.`` and a frozen
ImageNet network under ``imnet_model.``; published files the student alone. MIC leaves no trace in
the names: its files look like those of what it was trained on, HRDA or DAFormer.

Source: published checkpoints of DAFormer (arXiv:2111.14887), HRDA (arXiv:2204.13132), MIC
(arXiv:2212.01322).
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..modeling.daformer_head import DAFormerHead
from ..modeling.hrda import ScaleAttention
from ..modeling.mit import MixTransformer
from ..modeling.timm_backbone import TimmBackbone
from ..utils.foreign_files import read_json, sha256
from ..utils.state_dict import faults, some
from .efficientnet_names import is_efficientnet, to_timm_names
from .encoder_names import BACKBONE, MPCL, check_backbone_state, convert, infer_variant
from .weight_files import State, find_weight_file, read, unwrap, write_checkpoint

STUDENT, TEACHER = "student", "teacher"
_PREFIXES = {STUDENT: "model.", TEACHER: "ema_model."}
_DECODER, _SHARED, _ATTENTION = "decode_head.", "decode_head.head.", "decode_head.scale_attention."
_SEPARABLE = "fuse_layer.aspp_modules.1.depthwise_conv.conv.weight"  # what only DAFormer's has

# Released name -> ours, at the beginning of a name inside the decode head and the scale attention.
_HEAD_NAMES = {
    r"embed_layers\.(\d)\.proj\.": r"fusion.embed.\1.",
    r"fuse_layer\.aspp_modules\.(\d)\.depthwise_conv\.": r"fusion.branches.\1.dw.",
    r"fuse_layer\.aspp_modules\.(\d)\.pointwise_conv\.": r"fusion.branches.\1.pw.",
    r"fuse_layer\.aspp_modules\.0\.": "fusion.branches.0.",
    r"fuse_layer\.bottleneck\.": "fusion.bottleneck.",
    r"conv_seg\.": "classifier.",
}
_ATTENTION_NAMES = {
    r"embed_layers\.(\d)\.proj\.": r"embed.\1.",
    r"fuse_layer\.": "fusion.",
    r"conv_seg\.": "classifier.",
}


class Foreign(NamedTuple):
    """What a foreign file holds, under our names."""

    kind: str  # in words
    networks: dict[str, State]  # STUDENT and TEACHER, as far as they are there
    left_out: tuple[str, ...]  # the file's other tensors
    note: str = ""  # what its user must know

    @property
    def missing(self) -> str:
        """What a segmentor of ours needs and the file does not hold, in words; "" = nothing."""
        names = next(iter(self.networks.values()))
        return "" if any(not name.startswith(BACKBONE) for name in names) else "the decode head"


def read_foreign(state: Mapping[str, Tensor]) -> Foreign:
    """Encoder, and decode head where it is DAFormer's or HRDA's, of a Mix Transformer file.

    The decode head of SegFormer, and of whatever else, is another architecture: it is left out, and
    the note says so.

    Raises: ValueError: the file holds no Mix Transformer of a known kind, a part of it is missing,
        misshapen or not finite, or it is a checkpoint of this project.
    """
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if is_efficientnet(state):
        raise ValueError(
            "the file holds an EfficientNet: choose timm's encoder of its size, such as "
            "MODEL.BACKBONE.NAME build_timm_backbone MODEL.TIMM.NAME tf_efficientnet_lite0 (to "
            "convert: --timm tf_efficientnet_lite0)"
        )
    prefixes = {part: p for part, p in _PREFIXES.items() if any(n.startswith(p) for n in state)}
    parts = {
        part: _segmentor(state, prefix) for part, prefix in (prefixes or {STUDENT: ""}).items()
    }
    left_out = tuple(n for n in state if not any(n in one.used for one in parts.values()))
    first = next(iter(parts.values()))
    networks = {part: one.tensors for part, one in parts.items()}
    return Foreign(first.kind, networks, left_out, first.note)


def read_timm(state: Mapping[str, Tensor], name: str) -> Foreign:
    """An encoder of timm, in a file of timm's, of efficientnet_pytorch's, or of the encoder's
    authors; see :meth:`TimmBackbone.translate`.

    Raises: ValueError: timm has no such model, or the file is none of it.
    """
    backbone = TimmBackbone(name)
    if is_efficientnet(state):
        state = to_timm_names(state, backbone.timm.state_dict())
    encoder, left_out = backbone.translate(state)
    network = {BACKBONE + key: tensor for key, tensor in encoder.items()}
    return Foreign(f"timm {name}", {STUDENT: network}, tuple(left_out))


def convert_checkpoint(
    src: str | Path, dst: str | Path, *, part: str = "both", timm_name: str = ""
) -> Foreign:
    """Writes a foreign file as a checkpoint that MODEL.WEIGHTS takes, with its provenance.

    Args:
        src: a file, Hugging Face folder, or ``package://NAME``.
        part: ``student`` or ``teacher``: this network becomes the model; ``both``: the student is
            the model and the teacher, where there is one, its teacher.
        timm_name: the encoder of timm that the file is of; "" = told by a folder's config.json.
    Returns: what was written.
    Raises: ValueError: ``part`` is another, ``dst`` does not end in .pth, the file has no such
        part, or is none that is known.
    """
    if part not in ("both", STUDENT, TEACHER):
        raise ValueError(f"part is {part!r}; expected one of both, {STUDENT}, {TEACHER}")
    if Path(dst).suffix != ".pth":
        raise ValueError(f"dst must end in .pth, got {dst}")
    path = find_weight_file(src)
    timm_name = timm_name or _timm_name(Path(src))
    content = read(path)
    meta = content.get("meta")  # what mmcv notes beside the tensors
    meta = meta if isinstance(meta, Mapping) else {}
    try:
        state = unwrap(content)
        foreign = read_timm(state, timm_name) if timm_name else read_foreign(state)
        foreign = _chosen(foreign, part)
        note = _class_note(foreign, meta.get("CLASSES"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    checkpoint: dict[str, Any] = {"model": _our_own_copy(next(iter(foreign.networks.values())))}
    if len(foreign.networks) > 1:
        checkpoint["teacher"] = _our_own_copy(foreign.networks[TEACHER])
    checkpoint["provenance"] = {
        "kind": foreign.kind,
        "file": Path(path).name,
        "sha256": sha256(path),
        "iteration": meta.get("iter"),
    }
    write_checkpoint(checkpoint, Path(dst))
    return foreign._replace(note=" ".join(filter(None, [foreign.note, note])))


class _Segmentor(NamedTuple):
    tensors: State  # under our names
    kind: str
    used: set[str]  # names in the file
    note: str


def _segmentor(state: State, prefix: str) -> _Segmentor:
    """The network whose names begin with a prefix."""
    state = {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
    encoder = convert(state)
    if encoder.source == MPCL:
        raise ValueError(
            "this is a checkpoint of this project already: MODEL.WEIGHTS takes it as it is, and "
            "tools/export.py --format slim takes one network out of it"
        )
    variant = infer_variant(encoder.state)
    with torch.device("meta"):
        backbone = MixTransformer(variant=variant)
    check_backbone_state(encoder.state, backbone.state_dict())
    ours = {BACKBONE + name: tensor for name, tensor in encoder.state.items()}
    decoder = [name for name in encoder.left_out if name.startswith(_DECODER)]
    source, note, heads = encoder.source, "", {}
    if {_SHARED + _SEPARABLE, _DECODER + _SEPARABLE} & set(decoder):
        heads = _head_names(decoder)
        ours |= {name: state[theirs] for theirs, name in heads.items()}
        source = _check_heads(ours, backbone)
    elif decoder:
        note = (
            f"Its decode head ({some(decoder)}) is another architecture than DAFormer's and is "
            "left out: training can start from the encoder, but the file's own results cannot be "
            "reproduced here."
        )
    if broken := [name for name, t in ours.items() if not torch.isfinite(t).all()]:
        raise ValueError(f"the weights are not finite: {some(broken)}")
    used = state.keys() - (set(encoder.left_out) - heads.keys())
    return _Segmentor(ours, f"{source} MiT-{variant}", {prefix + name for name in used}, note)


def _head_names(decoder: Sequence[str]) -> dict[str, str]:
    """Released name -> ours, of a decode head; what is not known keeps its name, to be refused."""
    multi_resolution = any(name.startswith(_ATTENTION) for name in decoder)
    shared = _SHARED if multi_resolution else _DECODER
    names = {}
    for name in decoder:
        if name.startswith(_ATTENTION):
            inside = _renamed(name.removeprefix(_ATTENTION), _ATTENTION_NAMES)
            names[name] = f"scale_attention.{inside}"
        else:
            names[name] = f"sem_seg_head.{_renamed(name.removeprefix(shared), _HEAD_NAMES)}"
    return names


def _renamed(name: str, rules: Mapping[str, str]) -> str:
    for theirs, ours in rules.items():
        if match := re.match(theirs, name):
            return match.expand(ours) + name[match.end() :]
    return name


def _check_heads(state: State, backbone: MixTransformer) -> str:
    """Compares the heads with freshly built ones, and says which method they are of.

    Raises: ValueError: missing, unknown or misshapen tensors.
    """
    shape = backbone.output_shape()
    heads = {name: t for name, t in state.items() if not name.startswith(BACKBONE)}
    classifier = heads.get("sem_seg_head.classifier.weight")
    if classifier is None or classifier.dim() != 4:
        raise ValueError(f"the decode head has no pixel classifier: it holds {some(heads)}")
    classes, channels = classifier.shape[:2]
    branches = {m[0] for n in heads if (m := re.match(r"sem_seg_head\.fusion\.branches\.\d+", n))}
    multi_resolution = any(name.startswith("scale_attention.") for name in heads)
    dilations = (1, *(6,) * (len(branches) - 1))  # of any rate: only the first has no kernel
    expected = nn.Module()
    with torch.device("meta"):
        expected.sem_seg_head = DAFormerHead(
            shape, num_classes=classes, channels=channels, dilations=dilations
        )
        if multi_resolution:
            expected.scale_attention = ScaleAttention(
                shape, num_classes=classes, channels=channels, dropout=0.0, norm="BN"
            )
    if listing := faults(heads, expected.state_dict()):
        raise ValueError(f"the decode head does not fit: {listing}")
    return "HRDA (or MIC on it)" if multi_resolution else "DAFormer (or MIC on it)"


def _chosen(foreign: Foreign, part: str) -> Foreign:
    if part == "both":
        return foreign
    if part not in foreign.networks:
        raise ValueError(
            f"the file holds no {part}, only the {' and '.join(foreign.networks)}; "
            "published files hold the student alone"
        )
    # A pattern for each other network: one entry for a thousand names.
    others = [f"{_PREFIXES[other]}*" for other in foreign.networks if other != part]
    networks = {part: foreign.networks[part]}
    return foreign._replace(networks=networks, left_out=(*others, *foreign.left_out))


def _timm_name(folder: Path) -> str:
    """What the config.json that timm publishes beside its weights names; "" where there is none."""
    file = folder / "config.json"
    if not file.exists():
        return ""
    content = read_json(file)
    return str(content.get("architecture", "")) if isinstance(content, dict) else ""


def _class_note(foreign: Foreign, classes: Any) -> str:
    """What the class names of a file's metadata add; they are optional."""
    classifier = next(iter(foreign.networks.values())).get("sem_seg_head.classifier.bias")
    if classifier is None or not isinstance(classes, (list, tuple)):
        return ""
    if len(classes) != len(classifier):
        raise ValueError(
            f"the file names {len(classes)} classes, but its classifier has {len(classifier)}"
        )
    return f"Its classes, in this order: {', '.join(map(str, classes))}."


def _our_own_copy(state: State) -> State:
    """Tensors without the storage that they may share with parts that are left out."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
