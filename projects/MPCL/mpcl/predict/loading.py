"""Networks of a checkpoint, without touching training data."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.modeling import build_model
from torch import nn

from ..checkpoint.training import TrainingCheckpointer
from ..checkpoint.weight_files import refuse_nothing, refuse_random_layers
from ..config import get_cfg_from
from ..self_training.teacher import EMATeacher


def load_networks(cfg, resume: bool = False) -> tuple[nn.Module, nn.Module | None]:
    """Student and teacher of a checkpoint, without touching training data.

    Args:
        resume: the newest checkpoint of OUTPUT_DIR instead of MODEL.WEIGHTS.

    Returns: the teacher is None where the checkpoint holds none.
    Raises: ValueError: no checkpoint was named, or there is none in OUTPUT_DIR.
    """
    student = build_model(cfg)
    checkpointer = TrainingCheckpointer(student, cfg.OUTPUT_DIR)
    path = checkpointer.get_checkpoint_file() if resume else cfg.MODEL.WEIGHTS
    refuse_nothing(path, resume, cfg.OUTPUT_DIR)
    rest = checkpointer.load(path, checkpointables=[])
    refuse_random_layers(path, checkpointer.initial, cfg.TEST.OUTPUT)
    if "teacher" not in rest:
        return student, None
    teacher = EMATeacher.from_config(cfg, student)
    teacher.model.load_state_dict(rest["teacher"])
    return student, teacher


def load_run(folder: Path, opts: Sequence[str] = ()):
    """``(config, student, teacher)`` of the newest checkpoint in an output folder of training.

    Args:
        opts: KEY VALUE pairs over the run's own config.

    Raises: ValueError: the folder has no config.yaml, or no checkpoint.
    """
    config_file = folder / "config.yaml"
    if not config_file.is_file():
        raise ValueError(f"{folder} is no output folder of train_net.py: it has no config.yaml")
    cfg = get_cfg_from(str(config_file), [*opts, "OUTPUT_DIR", str(folder)])
    return cfg, *load_networks(cfg, resume=True)
