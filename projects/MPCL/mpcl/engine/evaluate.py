"""Evaluation of student and teacher, of a run in progress or of a checkpoint."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from pathlib import Path

from detectron2.data import MetadataCatalog
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from ..data.build import build_test_loader
from ..evaluation.evaluator import SegmentationEvaluator, build_evaluator, mean_metrics
from ..evaluation.run_record import write_confusion
from ..evaluation.runs import scores_by_dataset
from ..evaluation.tables import summary
from ..predict.loading import Networks

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
    role: str = "student",
    build_test_loader: Callable = build_test_loader,
    build_evaluator: Callable = build_evaluator,
) -> OrderedDict:
    """Evaluates both networks on DATASETS.TEST, and logs a summary.

    Args:
        role: of ``student``, which is ``"teacher"`` where a slim file holds that alone.
        build_test_loader, build_evaluator: of ``(cfg, data set's name)``; a trainer's own.
    Returns: ``{"sem_seg": scores}`` of the teacher, the headline, and ``sem_seg_student``; without
        a teacher ``sem_seg`` is the student's. With several sets, or parts of a set, the same below
        the name of each, as in detectron2. Empty on other processes than the main one.
    """
    networks = {role: student} if teacher is None else {"teacher": teacher, "student": student}
    if comm.is_main_process() and cfg.DATASETS.TEST:
        logger.info(f"Evaluating the {' and the '.join(networks)}")
    results: OrderedDict = OrderedDict()
    for name in cfg.DATASETS.TEST:
        loader = build_test_loader(cfg, name)
        evaluators = {network: build_evaluator(cfg, name) for network in networks}
        for network, evaluator in evaluators.items():
            if isinstance(evaluator, SegmentationEvaluator):
                evaluator.network = network
        for network, scores in _evaluate_together(cfg, name, networks, loader, evaluators).items():
            task = "sem_seg" if network == next(iter(networks)) else f"sem_seg_{network}"
            for part in scores:
                dataset = name if part == "sem_seg" else part
                results.setdefault(dataset, OrderedDict())[task] = scores[part]
    if results:
        by_dataset = scores_by_dataset(flatten_results_dict(results), cfg.DATASETS.TEST)
        logger.info(f"In percent:\n{summary(by_dataset, mean_metrics(cfg.TEST.CLASS_SUBSETS))}")
    return next(iter(results.values())) if len(results) == 1 else results


def _evaluate_together(
    cfg, name: str, networks: dict, loader: Iterable, evaluators: dict[str, DatasetEvaluator]
) -> dict[str, dict]:
    """Scores of each network on a set and its parts, in one pass over the images. All ranks must
    call it; empty on other processes than the main one.

    The confusion matrices stay in ``<OUTPUT_DIR>/inference/<set>/confusion_<role>.json``.
    """
    start = time.perf_counter()
    scores = inference_on_dataset(_Networks(networks), loader, _Evaluators(evaluators))
    seconds = time.perf_counter() - start
    if not comm.is_main_process():
        return {}
    classes = MetadataCatalog.get(name).stuff_classes
    folder = Path(cfg.OUTPUT_DIR) / "inference" / name
    for role, evaluator in evaluators.items():
        if isinstance(evaluator, SegmentationEvaluator):
            write_confusion(folder, role, classes, evaluator.confusion, seconds)
    return scores


class _Networks(nn.ModuleDict):
    """Networks that see the same images; leaves evaluation in the mode that the first was in."""

    def __init__(self, networks: dict[str, nn.Module]) -> None:
        super().__init__(networks)
        self.training = next(iter(networks.values())).training

    def forward(self, batch: list[dict]) -> dict[str, list[dict]]:
        return {role: network(batch) for role, network in self.items()}


class _Evaluators(DatasetEvaluator):
    """Each counts the predictions of its network."""

    def __init__(self, evaluators: dict[str, DatasetEvaluator]) -> None:
        self.evaluators = evaluators

    def reset(self) -> None:
        for evaluator in self.evaluators.values():
            evaluator.reset()

    def process(self, inputs: list[dict], outputs: dict[str, list[dict]]) -> None:
        for role, evaluator in self.evaluators.items():
            evaluator.process(inputs, outputs[role])

    def evaluate(self) -> dict[str, dict]:
        return {role: evaluator.evaluate() for role, evaluator in self.evaluators.items()}


def evaluate_networks(networks: Networks) -> OrderedDict:
    """``--eval-only``: :func:`evaluate_models` of what a checkpoint holds.

    Raises: ValueError: a test set has the run's classes in another order.
    """
    own = list(networks.metadata.stuff_classes)
    for name in networks.cfg.DATASETS.TEST:
        for index, known in enumerate(MetadataCatalog.get(name).get("stuff_classes", ())):
            if known in own and own.index(known) != index:
                raise ValueError(
                    f"{name}: class {index} is {known!r}, which the checkpoint was trained to call "
                    f"{own.index(known)}; expected the classes in its order: {', '.join(own)}"
                )
    results = evaluate_models(
        networks.cfg, networks.student, networks.teacher, role=networks.role_of_model
    )
    if networks.selection and comm.is_main_process():
        logger.warning(f"Selection on labels: these weights were chosen by {networks.selection}")
    return results


def headline_key(cfg, dataset: str) -> str:
    """The key in metrics.json of a test set's headline, of the network in use."""
    several = len(cfg.DATASETS.TEST) > 1 or MetadataCatalog.get(dataset).get("parts", ())
    # No teacher has prototypes that could predict.
    task = "sem_seg_student" if cfg.TEST.OUTPUT == "prototypes" else "sem_seg"
    metric = f"{task}/{mean_metrics(cfg.TEST.CLASS_SUBSETS)[0]}"
    return f"{dataset}/{metric}" if several else metric
