"""Evaluation of student and teacher, of a run in progress or of a checkpoint."""

import logging
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.evaluation import inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model
from detectron2.utils import comm
from torch import nn

from ..config import get_cfg_from
from ..data.paired_loader import build_test_loader
from ..evaluation import build_evaluator, mean_metrics
from ..modeling.weight_files import refuse_nothing, refuse_random_layers
from ..reporting import summary
from ..runs import scores_by_dataset
from .build import build_teacher
from .checkpointing import TrainingCheckpointer
from .run_record import write_confusion

logger = logging.getLogger(__name__)


def evaluate_models(cfg, student: nn.Module, teacher: nn.Module | None) -> OrderedDict:
    """Evaluates both networks on DATASETS.TEST, and logs a summary.

    Returns:
        ``{"sem_seg": scores}`` of the teacher, the headline, and ``sem_seg_student``; without a
        teacher ``sem_seg`` is the student's. With several sets, or parts of a set, the same below
        the name of each, as in detectron2. Empty on other processes than the main one.
    """
    networks = {"sem_seg": teacher, "sem_seg_student": student}
    if teacher is None:
        networks = {"sem_seg": student}
    results: OrderedDict = OrderedDict()
    for task, network in networks.items():
        role = "student" if network is student else "teacher"
        if comm.is_main_process():
            logger.info(f"Evaluating the {role}")
        for dataset, scores in evaluate_network(cfg, network, role).items():
            results.setdefault(dataset, OrderedDict())[task] = scores
    if results:
        by_dataset = scores_by_dataset(flatten_results_dict(results), cfg.DATASETS.TEST)
        logger.info(f"In percent:\n{summary(by_dataset, mean_metrics(cfg.TEST.CLASS_SUBSETS))}")
    return next(iter(results.values())) if len(results) == 1 else results


def evaluate_network(cfg, network: nn.Module, role: str) -> dict[str, dict[str, float]]:
    """Scores of each set of DATASETS.TEST and of its parts, by name. All ranks must call it.

    The confusion matrix stays in ``<OUTPUT_DIR>/inference/<set>/confusion_<role>.json``.
    """
    results: dict[str, dict[str, float]] = {}
    for name in cfg.DATASETS.TEST:
        evaluator, start = build_evaluator(cfg, name), time.perf_counter()
        scores = inference_on_dataset(network, build_test_loader(cfg, name), evaluator)
        if comm.is_main_process():
            classes, folder = MetadataCatalog.get(name).stuff_classes, Path(cfg.OUTPUT_DIR)
            seconds = time.perf_counter() - start
            write_confusion(
                folder / "inference" / name, role, classes, evaluator.confusion, seconds
            )
        results |= {name if task == "sem_seg" else task: scores[task] for task in scores}
    return results


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
    teacher = build_teacher(cfg, student)
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


def evaluate_checkpoint(cfg, resume: bool = False) -> OrderedDict:
    """``--eval-only``: evaluates what a checkpoint holds; see :func:`load_networks`."""
    return evaluate_models(cfg, *load_networks(cfg, resume))
