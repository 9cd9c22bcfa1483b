"""Loads ``MODEL.WEIGHTS``: our own checkpoints, and the files of others.

Files of others are told apart and renamed by :mod:`~mpcl.checkpoint.encoder_names` and
:mod:`~mpcl.checkpoint.foreign`. Encoders of timm translate their files themselves;
detectron2 does it for its ResNets. Opening a file never runs code from it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from ..modeling.mit import MixTransformer
from ..modeling.timm_backbone import TimmBackbone
from ..utils.state_dict import some
from .encoder_names import BACKBONE, check_backbone_state
from .foreign import STUDENT, read_foreign, read_timm
from .weight_files import CAFFE2, State, find_weight_file, read, read_zoo, unwrap

_TIMM = "timm."
_PROTOTYPES = "prototype_head."
_LEARNED = (f"{_PROTOTYPES}prototypes.", f"{_PROTOTYPES}banks.")  # by clustering, not by gradients
_NOT_IN_ZOO = ("num_batches_tracked", "running_mean", "running_var")  # 0 and 1 where it has none


class WeightsCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer that also reads the files of others.

    Checkpoints of our own load as they are, training state included. A released DAFormer, HRDA or
    MIC checkpoint gives its student, decode head included. Other files, or folders of Hugging Face,
    give an encoder and nothing else: SegFormer's for the Mix Transformer, timm's for its encoders,
    and detectron2's .pkl files for its ResNets. What matched, what is missing and what was left
    over is logged.

    Args:
        allow_unmatched: tensors of another shape than the model's, and a backbone that is missing
            or another one, keep their initial values instead of being refused.
        with_prototypes: whether the prototypes and the feature banks of a checkpoint are loaded: a
            new run that starts from its weights begins them anew.
    Attributes:
        initial: names of the model's tensors that the last load left as they were.

    Raises (on load):
        ValueError: the file holds nothing that this model knows, not a complete encoder, another
            one, or tensors of other shapes; the message begins with the file's name.
    """

    initial: tuple[str, ...] = ()
    learns = True  # a frozen encoder needs the layers as well that others have at random
    remedy = (
        "Name the weights that belong to the config; or set MODEL.ALLOW_UNMATCHED True to train "
        "what does not match from its initial values"
    )

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        allow_unmatched: bool = False,
        with_prototypes: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, save_dir, **kwargs)
        self.allow_unmatched = allow_unmatched
        self.with_prototypes = with_prototypes

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
            return read_zoo(filename)
        if filename.endswith(".pyth"):  # detectron2 opens it without weights_only
            raise ValueError("files of pycls are not read; save the file's model_state as .pth")
        return super()._load_file(filename)

    def _torch_load(self, f: str) -> dict[str, Any]:
        content = read(f)
        content.pop("matching_heuristics", None)  # .pkl files alone are matched by likeness
        if "model" not in content:
            return {"model": unwrap(content)}
        model = content["model"]
        return content | {"model": unwrap(model if isinstance(model, dict) else {"model": model})}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        if "matching_heuristics" in checkpoint:  # detectron2's model zoo, which it matches itself
            return self._load_zoo(checkpoint)
        model = self.model.state_dict()
        state = {
            name.removeprefix("module."): tensor for name, tensor in checkpoint["model"].items()
        }
        if not model.keys() & state.keys():
            return self._load_foreign(checkpoint, model)
        if backbone := _backbone(state):
            expected = _backbone(model)
            if all(name.startswith(_TIMM) for name in backbone):  # without the levels' own layers
                expected = {name: t for name, t in expected.items() if name.startswith(_TIMM)}
            self._check_backbone(backbone, expected)
        elif _backbone(model) and not self.allow_unmatched:
            raise ValueError(f"it holds no backbone, but {some(state)}. {self.remedy}")
        return self._load_some(checkpoint)

    def _check_backbone(self, backbone: State, expected: State) -> None:
        try:
            check_backbone_state(backbone, expected)
        except ValueError as error:
            if not self.allow_unmatched:
                raise ValueError(f"{error}. {self.remedy}") from error
            self.logger.warning("%s", error)

    def _load_zoo(self, checkpoint: dict[str, Any]) -> Any:
        if checkpoint.get("__author__") == CAFFE2:
            self.logger.warning(
                "These weights are for BGR images whose standard deviation is 1; images are RGB "
                "here. Prefer a ResNet that torchvision or timm trained (docs/BACKBONES.md)."
            )
        incompatible = self._load_some(checkpoint)
        lacking = [
            name
            for name in self.initial
            if name.startswith(BACKBONE)
            and not (self.learns and "fpn_" in name)
            and not name.endswith(_NOT_IN_ZOO)
        ]
        if lacking and not self.allow_unmatched:
            raise ValueError(
                f"it lacks {len(lacking)} of the backbone: {some(lacking)}. {self.remedy}"
            )
        return incompatible

    def _load_foreign(self, checkpoint: dict[str, Any], model: State) -> Any:
        state, kind, left_out = self._translate(checkpoint["model"], model)
        checkpoint["model"] = state
        incompatible = self._load_some(checkpoint)
        self.logger.info(
            "%s: %d tensors matched; %d tensors of the model keep their initial values; "
            "%d tensors of the file are left out%s",
            kind,
            len(state) - len(incompatible.incorrect_shapes),
            len(self.initial),
            len(left_out),
            f" ({some(left_out)})" if left_out else "",
        )
        incompatible.missing_keys.clear()  # said above; a list of them would read as a fault
        return incompatible

    def _translate(self, file: State, model: State) -> tuple[State, str, Sequence[str]]:
        """What a foreign file holds for this model, in words what it is, and the file's rest."""
        backbone = self.model.backbone
        if isinstance(backbone, TimmBackbone):
            foreign = read_timm(file, backbone.name)
        elif isinstance(backbone, MixTransformer):
            foreign = read_foreign(file)
        else:
            raise ValueError(
                f"{type(backbone).__name__} starts from detectron2's .pkl files and from "
                f"checkpoints of this project; the file holds {some(file)}"
            )
        state = foreign.networks.get(STUDENT) or next(iter(foreign.networks.values()))
        if isinstance(backbone, MixTransformer):
            self._check_backbone(_backbone(state), _backbone(model))
        elsewhere = [name for name in state if name not in model]
        state = {name: tensor for name, tensor in state.items() if name in model}
        return state, foreign.kind, [*foreign.left_out, *elsewhere]

    def _check_prototype_head(self, state: State) -> None:
        """Refuses a prototype head of another kind than the model's: a part of it would be random,
        or read other features, and whatever is shown of the prototypes wrong."""
        begin_anew = ("banks.", *(() if self.with_prototypes else ("prototypes.",)))

        def parts(names: Iterable[str]) -> set[str]:
            found = {name.partition(_PROTOTYPES)[2] for name in names if _PROTOTYPES in name}
            return {n for n in found if not n.startswith(begin_anew) and "num_batches" not in n}

        file, model = parts(state), parts(self.model.state_dict())
        if file and model and file != model:
            head = "separate" if any(name.startswith("fusion.") for name in file) else "shared"
            raise ValueError(
                f"its prototype head differs from the config's ({some(sorted(file ^ model))}). Set "
                f"PROTOTYPES.HEAD {head}, and PROTOTYPES.TYPE as it was trained, or "
                "PROTOTYPES.TYPE none to predict by the classifier alone; or set "
                "MODEL.ALLOW_UNMATCHED True"
            )

    def _load_some(self, checkpoint: dict[str, Any]) -> Any:
        """Loads as detectron2 does, but refuses to load nothing, and other shapes."""
        if not self.with_prototypes:
            state = checkpoint["model"]
            learned = [name for name in state if any(part in name for part in _LEARNED)]
            checkpoint["model"] = {n: t for n, t in state.items() if n not in learned}
        if not self.allow_unmatched:
            self._check_prototype_head(checkpoint["model"])
        has_prototypes = any(_PROTOTYPES in name for name in checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        if incompatible.incorrect_shapes and not self.allow_unmatched:
            raise ValueError(f"{_misshapen(incompatible.incorrect_shapes)} {self.remedy}")
        misshapen = [name for name, *_ in incompatible.incorrect_shapes]
        self.initial = tuple(dict.fromkeys([*incompatible.missing_keys, *misshapen]))
        if len(self.initial) >= len(self.model.state_dict()):
            raise ValueError("no tensor of the weights fits the model")
        self.logger.info(
            "%d of the model's %d tensors matched, %d were missing; %d of the file were unexpected",
            len(self.model.state_dict()) - len(self.initial),
            len(self.model.state_dict()),
            len(self.initial),
            len(incompatible.unexpected_keys),
        )
        if not has_prototypes:  # then none of them is meant to be there
            missing = incompatible.missing_keys
            missing[:] = [name for name in missing if not name.startswith(_PROTOTYPES)]
        elif not self.with_prototypes:
            missing = incompatible.missing_keys
            missing[:] = [name for name in missing if not name.startswith(_LEARNED)]
        return incompatible


class _WholeEncoder(WeightsCheckpointer):
    """Of a network that is one encoder and learns nothing that it lacks."""

    learns = False
    remedy = (
        "The encoder of SELF_TRAINING.FEATURE_DISTANCE needs all of its weights: name those that "
        "belong to the config in MODEL.WEIGHTS, or set FEATURE_DISTANCE.WEIGHT 0.0"
    )


def load_encoder_(encoder: nn.Module, path: str) -> None:
    """Gives a frozen encoder, which learns nothing that it lacks, the weights that a model with
    this backbone would start from.

    Raises: ValueError: see :class:`WeightsCheckpointer`.
    """
    holder = nn.Module()
    holder.backbone = encoder
    _WholeEncoder(holder).load(path)


def _misshapen(shapes: Sequence[tuple[str, Sequence[int], Sequence[int]]]) -> str:
    listed = [f"{name} has {tuple(file)}, expected {tuple(model)}" for name, file, model in shapes]
    classes = any("classifier" in name for name, *_ in shapes)
    hint = " Does MODEL.SEM_SEG_HEAD.NUM_CLASSES differ from the checkpoint's?" if classes else ""
    return f"{len(listed)} tensors have another shape: {some(listed)}.{hint}"


def _backbone(state: Mapping[str, Tensor]) -> State:
    return {
        name.removeprefix(BACKBONE): tensor
        for name, tensor in state.items()
        if name.startswith(BACKBONE)
    }
