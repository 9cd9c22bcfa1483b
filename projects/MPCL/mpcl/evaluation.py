"""detectron2's SemSegEvaluator with our label reader and a table that people read."""

import logging
import os
from collections import OrderedDict

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from tabulate import tabulate

from .data.labels import label_loader

logger = logging.getLogger(__name__)


def build_evaluator(cfg, dataset_name: str) -> "SegmentationEvaluator":
    return SegmentationEvaluator(
        dataset_name, os.path.join(cfg.OUTPUT_DIR, "inference", dataset_name)
    )


class SegmentationEvaluator(SemSegEvaluator):
    """mIoU and per-class IoU; classes that the ground truth never shows are absent from the result.

    Two differences to the stock evaluator, neither in the numbers: labels are read by
    :func:`label_loader` (numpy 1 and 2, raw label ids), and predictions are not run-length encoded
    nor their boundaries scored, which takes most of the stock evaluator's time and which no
    benchmark of the field reports.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None) -> None:
        label_map = MetadataCatalog.get(dataset_name).get("label_map", None)
        super().__init__(
            dataset_name, output_dir=output_dir, sem_seg_loading_fn=label_loader(label_map)
        )
        self._compute_boundary_iou = False

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list:
        return []

    def evaluate(self) -> OrderedDict | None:
        results = super().evaluate()
        if results is None:  # not the main process
            return None
        scores = {name: value for name, value in results["sem_seg"].items() if np.isfinite(value)}
        logger.info(f"{self._dataset_name}: mIoU {scores['mIoU']:.2f}\n{self._table(scores)}")
        return OrderedDict(sem_seg=scores)

    def _table(self, scores: dict[str, float]) -> str:
        rows = [
            (name, scores.get(f"IoU-{name}"), scores.get(f"ACC-{name}"))
            for name in self._class_names
        ]
        return tabulate(
            rows, headers=["class", "IoU %", "accuracy %"], floatfmt=".2f", missingval="absent"
        )
