"""The networks of a checkpoint, from wherever they come, without touching training data."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint.training import TrainingCheckpointer
from ..checkpoint.weight_files import read, refuse_random_layers, require_weights
from ..config import get_cfg_from
from ..config.reading import merge_options
from ..data.sets.classes import classes_of, from_plain, read_classes
from ..evaluation.runs import CONFIG, config_file_of
from ..self_training.teacher import EMATeacher
from ..utils.foreign_files import parse_yaml
from ..utils.messages import short

Source = CfgNode | str | os.PathLike[str]
SLIM_CONFIG, SLIM_CLASSES, SLIM_ROLE = "config", "classes", "role"
"""What a slim file (tools/export.py) holds beside its "model"."""


class Networks(NamedTuple):
    """The networks of a checkpoint in evaluation mode, without gradients.

    Attributes:
        student: or whichever network the checkpoint's "model" is.
        teacher: None where the checkpoint holds none.
        metadata: ``stuff_classes`` and ``stuff_colors`` of the network's classes.
        prefers_student: the student was asked for.
        role_of_model: what the checkpoint's "model" is; a slim file may hold a teacher alone.
        selection: by which score on labels the checkpoint was chosen (TEST.SELECT_ON); "" = it was
            not.
    """

    cfg: CfgNode
    student: nn.Module
    teacher: EMATeacher | None
    metadata: Metadata
    prefers_student: bool = False
    role_of_model: str = "student"
    selection: str = ""

    @property
    def by_prototypes(self) -> bool:
        """Whether prototypes, which are the student's, predict."""
        return self.cfg.TEST.OUTPUT == "prototypes"

    @property
    def role(self) -> str:
        """``"teacher"`` or ``"student"``: which network predicts."""
        by_student = self.prefers_student or self.teacher is None or self.by_prototypes
        return self.role_of_model if by_student else "teacher"

    @property
    def network(self) -> nn.Module:
        """The network that predicts.

        Raises: ValueError: prototypes are to predict that were never started.
        """
        if self.teacher is not None and self.role == "teacher":
            return self.teacher.model
        if self.by_prototypes and not self.student.prototype_head.prototypes.started.any():
            raise ValueError(
                "TEST.OUTPUT prototypes: the checkpoint was saved before its prototypes started "
                f"(PROTOTYPES.INIT.ITER {self.cfg.PROTOTYPES.INIT.ITER}), or they were left out "
                "of it"
            )
        return self.student


def refuse_other_classes(networks: Networks, dataset: str) -> None:
    """Raises ValueError where a set has other classes than the networks, or another order of them.

    These are the classes that the run has kept; of networks without them their number counts.
    """
    if dataset not in MetadataCatalog:
        return  # whoever reads it says so
    own = list(networks.metadata.stuff_classes)
    expected = list(MetadataCatalog.get(dataset).get("stuff_classes", own))
    unknown = own == [f"class {i}" for i in range(len(own))]
    if len(own) != len(expected) or not (unknown or own == expected):
        named = f"{len(own)} classes" if unknown else ", ".join(own)
        raise ValueError(f"it knows {named}; {dataset} has {', '.join(expected)}")


def load_networks(
    source: Source,
    weights: str | os.PathLike[str] = "",
    *,
    opts: Sequence[Any] = (),
    student: bool = False,
    resume: bool = False,
) -> Networks:
    """The networks of a run, of a config with weights, or of a weight file.

    Args:
        source: a config; a config file; the output folder of a run, whose newest checkpoint is
            taken; or a weight file, either slim (tools/export.py), with its config inside, or
            beside a run's config.yaml.
        weights: a checkpoint instead of the config's MODEL.WEIGHTS, or of a run's newest.
        opts: KEY VALUE pairs over the config. Without MODEL.DEVICE among them, a config that was
            read from a file runs on the GPU where there is one, wherever it was written.
        student: of a checkpoint with both, the student is to predict.
        resume: of a config, take the newest checkpoint of its OUTPUT_DIR, not MODEL.WEIGHTS.
    Raises:
        FileNotFoundError: the source or the weights do not exist.
        ValueError: there is no config or no checkpoint, the weights lack layers of the model, have
            other classes, or are a teacher's alone and the student is asked for.
    """
    opts = [*(["MODEL.WEIGHTS", str(weights)] if weights else []), *opts]
    classes = None
    if isinstance(source, CfgNode):
        cfg = source.clone()
        cfg.defrost()
        merge_options(cfg, opts)
    else:
        opts = ["MODEL.DEVICE", "cuda" if torch.cuda.is_available() else "cpu", *opts]
        path = Path(source)
        if path.is_dir():
            cfg, classes = _config_of_run(path, [*opts, "OUTPUT_DIR", str(path)])
            resume = not weights
        elif path.suffix in (".yaml", ".yml"):
            cfg = get_cfg_from(str(source), opts)  # an address is no path
        else:
            cfg, classes = _config_of_weights(path, opts)
    networks = _load(cfg, resume, classes)._replace(prefers_student=student)
    _check(networks)
    return networks


def _load(cfg: CfgNode, resume: bool, classes: Metadata | None) -> Networks:
    """What a config's weights, or the newest checkpoint of its OUTPUT_DIR, hold.

    Args:
        classes: of weights that come without their own.
    """
    student = build_model(cfg)
    checkpointer = TrainingCheckpointer(student, cfg.OUTPUT_DIR)
    path = checkpointer.take_newest() if resume else cfg.MODEL.WEIGHTS
    require_weights(path, resume, cfg.OUTPUT_DIR)
    rest = checkpointer.load(path, checkpointables=[])
    refuse_random_layers(path, checkpointer.initial, cfg.TEST.OUTPUT)
    teacher = _teacher(cfg, student, rest["teacher"], path) if "teacher" in rest else None
    if SLIM_CONFIG in rest:
        classes, role = from_plain(rest.get(SLIM_CLASSES), path), rest.get(SLIM_ROLE)
    else:
        classes, role = read_classes(Path(path).parent) or classes or classes_of(cfg), "student"
    if role not in ("student", "teacher"):
        raise ValueError(f"{path}: {SLIM_ROLE} is {short(role)}; expected student or teacher")
    for network in (student, teacher):
        if network is not None:
            network.eval().requires_grad_(False)
    selection = short(rest["selection"]) if "selection" in rest else ""
    return Networks(cfg, student, teacher, classes, role_of_model=role, selection=selection)


def _teacher(cfg: CfgNode, student: nn.Module, state: Any, path: str) -> EMATeacher:
    teacher = EMATeacher.from_config(cfg, student)
    try:
        teacher.model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its teacher is none of the config's model: {error}") from error
    return teacher


def _check(networks: Networks) -> None:
    """Raises ValueError where the student is asked for and not there, or the classes do not fit."""
    weights = networks.cfg.MODEL.WEIGHTS or networks.cfg.OUTPUT_DIR
    if networks.prefers_student and networks.role != "student":
        raise ValueError(
            f"{weights} holds the teacher alone, and the student is asked for: tools/export.py "
            "--student writes it"
        )
    names, number = networks.metadata.stuff_classes, networks.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if len(names) != number:
        raise ValueError(
            f"{weights} comes with {len(names)} classes, {', '.join(names)}, and "
            f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {number}"
        )


def _config_of_run(folder: Path, opts: Sequence[Any]) -> tuple[CfgNode, Metadata | None]:
    """A run's config and classes. Where it has kept them, its data need not be there."""
    config_file = config_file_of(folder)
    classes = read_classes(folder)
    return get_cfg_from(str(config_file), opts, data_may_lack=classes is not None), classes


def _config_of_weights(path: Path, opts: Sequence[Any]) -> tuple[CfgNode, Metadata | None]:
    """The config inside a slim file; or the config and classes beside a run's checkpoint."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no run, config or weight file at {path}")
    opts = ["MODEL.WEIGHTS", str(path), *opts]
    content = read(str(path))
    if SLIM_CONFIG in content:
        try:
            return _read_config(content[SLIM_CONFIG], opts), None
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    if path.with_name(CONFIG).is_file():
        return _config_of_run(path.parent, opts)
    raise ValueError(
        f"{path} comes without its config: name a config file and these weights, or a run's "
        "folder, or write a slim file with tools/export.py"
    )


def _read_config(text: str, opts: Sequence[Any]) -> CfgNode:
    """A config out of a weight file, which may come from anywhere: plain values, no other file."""
    settings = parse_yaml(text, "its config") if isinstance(text, str) else None
    if not isinstance(settings, dict) or "_BASE_" in settings:
        raise ValueError(f"the weight file's config is none of tools/export.py: {short(text)}")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / CONFIG
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return get_cfg_from(str(file), opts)
