"""Evaluation of student and teacher, of a run in progress or of a checkpoint."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from ..data.paired_loader import build_test_loader
from ..evaluation.evaluator import SegmentationEvaluator, build_evaluator, mean_metrics
from ..evaluation.run_record import write_confusion
from ..evaluation.runs import scores_by_dataset
from ..evaluation.tables import summary
from ..predict.loading import load_networks

logger = logging.getLogger(__name__)


class EvaluationHook(EvalHook):
    """detectron2's, but the final evaluation is that of a finished run: one that stops or fails in
    its last iteration is not evaluated."""

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:
            super().after_train()


def evaluate_models(
    cfg,
    student: nn.Module,
    teacher: nn.Module | None,
    *,
    build_test_loader: Callable = build_test_loader,
    build_evaluator: Callable = build_evaluator,
) -> OrderedDict:
    """Evaluates both networks on DATASETS.TEST, and logs a summary.

    Args:
        build_test_loader, build_evaluator: of ``(cfg, data set's name)``; a trainer's own.

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
        for dataset, scores in evaluate_network(
            cfg, network, role, build_test_loader, build_evaluator
        ).items():
            results.setdefault(dataset, OrderedDict())[task] = scores
    if results:
        by_dataset = scores_by_dataset(flatten_results_dict(results), cfg.DATASETS.TEST)
        logger.info(f"In percent:\n{summary(by_dataset, mean_metrics(cfg.TEST.CLASS_SUBSETS))}")
    return next(iter(results.values())) if len(results) == 1 else results


def evaluate_network(
    cfg, network: nn.Module, role: str, build_test_loader: Callable, build_evaluator: Callable
) -> dict[str, dict[str, float]]:
    """Scores of each set of DATASETS.TEST and of its parts, by name. All ranks must call it.

    The confusion matrix stays in ``<OUTPUT_DIR>/inference/<set>/confusion_<role>.json``.
    """
    results: dict[str, dict[str, float]] = {}
    for name in cfg.DATASETS.TEST:
        evaluator, start = build_evaluator(cfg, name), time.perf_counter()
        scores = inference_on_dataset(network, build_test_loader(cfg, name), evaluator)
        if comm.is_main_process() and isinstance(evaluator, SegmentationEvaluator):
            classes, folder = MetadataCatalog.get(name).stuff_classes, Path(cfg.OUTPUT_DIR)
            seconds = time.perf_counter() - start
            write_confusion(
                folder / "inference" / name, role, classes, evaluator.confusion, seconds
            )
        results |= {name if task == "sem_seg" else task: scores[task] for task in scores}
    return results


def evaluate_checkpoint(cfg, resume: bool = False) -> OrderedDict:
    """``--eval-only``: evaluates what a checkpoint holds; see :func:`load_networks`."""
    networks = load_networks(cfg, resume=resume)
    results = evaluate_models(cfg, networks.student, networks.teacher)
    if networks.selection and comm.is_main_process():
        logger.warning(f"Selection on labels: these weights were chosen by {networks.selection}")
    return results


def headline_key(cfg, dataset: str) -> str:
    """The key in metrics.json of a test set's headline, of the network in use."""
    several = len(cfg.DATASETS.TEST) > 1 or MetadataCatalog.get(dataset).get("parts", ())
    metric = f"sem_seg/{mean_metrics(cfg.TEST.CLASS_SUBSETS)[0]}"
    return f"{dataset}/{metric}" if several else metric
