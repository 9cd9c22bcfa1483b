"""detectron2's SemSegEvaluator with our label reader, Dice and precision, means over class subsets,
and a score for every part of a set."""

import logging
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils.logger import log_first_n
from numpy.typing import NDArray
from tabulate import tabulate
from torch import Tensor

from ..config.validation import ClassSubsets, check_class_subsets
from ..data.decoding import check_pair
from ..data.labels import check_label, read_label
from ..data.sets.registration import check_ignore_label

logger = logging.getLogger(__name__)
# The stock evaluator logs its dictionary of numbers in one line; the table says the same.
_stock_logger = logging.getLogger(f"{__name__}.stock")
_stock_logger.setLevel(logging.WARNING)


CLASS_SCORES = {"Dice": "mDice", "precision": "mPrecision", "recall": "mRecall"}
"""What is scored for each class beside its IoU, and the name of the mean."""


def build_evaluator(cfg, dataset_name: str) -> "SegmentationEvaluator":
    return SegmentationEvaluator(dataset_name, cfg.TEST.CLASS_SUBSETS)


def mean_metrics(class_subsets: ClassSubsets) -> list[str]:
    """Names of the means that an evaluation reports, the headline first."""
    return [*(f"mIoU-{name}" for name, _ in class_subsets), "mIoU"]


class SegmentationEvaluator(SemSegEvaluator):
    """IoU, Dice, precision and recall of each class, and their means; classes that the ground truth
    never shows are absent from the result.

    Differs from the stock evaluator, not in its numbers: labels are read as in training and refused
    if their size or an id is wrong; pixels are counted on the device of the scores; and predictions
    are neither run-length encoded nor their boundaries scored, which takes most of the stock
    evaluator's time. Additions, from the same confusion matrix and the same pass:

    - :func:`class_scores` beside the IoU; ``recall-<class>`` is what Detectron2 calls
      ``ACC-<class>``.
    - ``class_subsets``: ``mIoU-<name>`` over some of the classes, for sources that lack the others.
      The prediction is still over all classes.
    - a set whose metadata names ``parts``, registered sets that hold some of its images, is scored
      on each of them as well, as if it were evaluated alone.

    Args:
        dataset_name: a labelled set.
        class_subsets: the first is the headline of the log.
    Attributes:
        network: "teacher" or "student", for the log; whoever evaluates several sets it.
        confusion: after :meth:`evaluate`, on the main process: (C, C) int64 pixels of the whole
            set; rows are the ground truth, columns the prediction.
    Raises: ValueError: a subset names a class that the set does not know, or the set ignores
        another label than 255.
    """

    def __init__(self, dataset_name: str, class_subsets: ClassSubsets = ()) -> None:
        check_ignore_label(dataset_name)
        metadata = MetadataCatalog.get(dataset_name)
        super().__init__(dataset_name)
        check_class_subsets(class_subsets, self._class_names)
        self.network = ""
        self._logger = _stock_logger
        self._compute_boundary_iou = False
        self._class_subsets = class_subsets
        self._label_map = metadata.get("label_map", None)
        names = metadata.get("parts", ())
        self._parts = {name: SegmentationEvaluator(name, class_subsets) for name in names}

    def reset(self) -> None:
        super().reset()
        for part in self._parts.values():
            part.reset()

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        for record, output in zip(inputs, outputs):
            file = record["file_name"]
            matrix = self._count(output["sem_seg"], file, record.get("label"))
            for evaluator in (self, *self._parts.values()):
                if file in evaluator.input_file_to_gt_file:
                    evaluator._conf_matrix += matrix

    def _count(
        self, scores: Tensor, image_file: str, truth: NDArray[np.uint8] | None
    ) -> NDArray[np.int64]:
        """The image's confusion matrix, counted where its scores (C, H, W) are: rows are
        predictions, columns the ground truth; the last of each stand for ignored pixels.

        Args:
            truth: (H, W) class indices, if the loader has read them.
        Raises: BadFile: the label cannot be read, has another size or holds an unknown id.
        """
        size = self._num_classes + 1
        label_file = self.input_file_to_gt_file[image_file]
        if truth is None:
            truth = read_label(label_file, self._label_map)
        check_pair(image_file, label_file, tuple(scores.shape[-2:]), truth.shape)
        check_label(label_file, truth, self._num_classes)
        label = torch.from_numpy(truth).to(scores.device)
        label = torch.where(label == self._ignore_label, self._num_classes, label.int())
        # On a CPU max is several times faster than argmax, and finds the same.
        best = scores.max(dim=0)
        if best.values.isnan().any():  # a warning, lest a training end for its evaluation
            message = f"{image_file}: the network gives NaN; the scores of this set mean nothing"
            log_first_n(logging.WARNING, message, n=3, name=__name__)
        pair = size * best.indices.int() + label
        if pair.device.type == "cpu":
            count = np.bincount(pair.flatten().numpy(), minlength=size**2)
        else:
            count = pair.flatten().bincount(minlength=size**2).cpu().numpy()
        return count.reshape(size, size)

    def evaluate(self) -> OrderedDict | None:
        """``{"sem_seg": scores, <part>: scores, ...}`` in percent; None on other processes."""
        parts = {name: part._scores() for name, part in self._parts.items()}
        scores = self._scores()
        if scores is None:
            return None
        self.confusion = self._conf_matrix[:-1, :-1].T  # the last row and column: ignored pixels
        headline = mean_metrics(self._class_subsets)[0]
        value = f"{scores[headline]:.2f}" if headline in scores else "absent"
        subject = ", ".join(filter(None, (self._dataset_name, self.network)))
        logger.info(f"{subject}: {headline} {value}\n{self._table(scores)}")
        return OrderedDict(sem_seg=scores, **parts)

    def _scores(self) -> dict[str, float] | None:
        with np.errstate(invalid="ignore", divide="ignore"):  # nothing but ignored pixels
            results = super().evaluate()
            if results is None:
                return None
            more = class_scores(self._conf_matrix[:-1, :-1].T, self._class_names)
        found = results["sem_seg"] | more
        scores = {name: value for name, value in found.items() if np.isfinite(value)}
        for metric, (_, classes) in zip(mean_metrics(self._class_subsets), self._class_subsets):
            present = [scores[f"IoU-{c}"] for c in classes if f"IoU-{c}" in scores]
            if present:
                scores[metric] = float(np.mean(present))
        return scores

    def _table(self, scores: dict[str, float]) -> str:
        """A class a row, a score a column, with one for each subset; the means below."""
        benchmark = {c for _, classes in self._class_subsets for c in classes}

        def percent(metric: str) -> str:
            return f"{scores[metric]:.2f}" if metric in scores else "absent"

        rows = []
        for name in self._class_names:
            left_out = "-" if name in benchmark else "absent"
            own = percent(f"IoU-{name}")
            in_subsets = [own if name in c else left_out for _, c in self._class_subsets]
            more = [percent(f"{kind}-{name}") for kind in CLASS_SCORES]
            rows.append([name, *in_subsets, own, *more])
        means = [*mean_metrics(self._class_subsets), *CLASS_SCORES.values()]
        rows.append(["mean", *map(percent, means)])
        headers = [f"IoU % ({name})" for name, _ in self._class_subsets]
        headers += [f"{kind} %" for kind in ("IoU", *CLASS_SCORES)]
        align = ["left", *["right"] * len(headers)]
        return tabulate(rows, headers=["class", *headers], disable_numparse=True, colalign=align)


def class_scores(confusion: NDArray[np.integer], names: Sequence[str]) -> dict[str, float]:
    """Dice (which is F1), precision and recall in percent, and their means over the classes.

    Classes that the ground truth never shows are NaN, and left out of the means; the precision of a
    class that is never predicted is 0.

    Args:
        confusion: (C, C) pixels; rows are the ground truth, columns the prediction.
        names: of the C classes.
    Returns: ``Dice-<class>``, ``mDice`` and so on, as :data:`CLASS_SCORES` calls them.
    """
    right, truth, predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    by_class = {
        "Dice": 2 * right / (truth + predicted),
        "precision": right / np.maximum(predicted, 1),
        "recall": right / truth,
    }
    scores = {}
    for kind, mean in CLASS_SCORES.items():
        percent = np.where(truth > 0, 100 * by_class[kind], np.nan)
        scores |= {f"{kind}-{name}": float(value) for name, value in zip(names, percent)}
        scores[mean] = float(np.nansum(percent) / np.sum(truth > 0))
    return scores
