#!/usr/bin/env python
"""Could prototypes judge pseudo-labels? What teacher and prototypes know on labelled target images.

  python dev/judges.py RUN [RUN ...] [--images 60]

For each run with prototypes: how right the labels of the teacher are, those of the prototypes'
posterior (11), and those of both (the product of the two probabilities); how well the teacher's
confidence and the posterior of the teacher's label tell its right labels from its wrong ones (area
under the ROC curve); and, by class, how many pixels reach the teacher's threshold, how many of
those are right, and the same of those where the prototypes agree. Labels are read to judge only.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.metrics import roc_auc_score
from tabulate import tabulate
from torch import Tensor

from mpcl.predict.loading import Networks, load_networks
from mpcl.visualization.scenes import first_test_set, load_scenes

Table = list[list[object]]


class Pixels(NamedTuple):
    """The labelled pixels of all images.

    Attributes:
        truth: (N,) int64 class.
        teacher, prototypes, both: (N,) int64 most probable class.
        confidence: (N,) probability that the teacher gives to its label.
        posterior: (N,) probability that the prototypes give to the teacher's label.
    """

    truth: Tensor
    teacher: Tensor
    prototypes: Tensor
    both: Tensor
    confidence: Tensor
    posterior: Tensor


@torch.no_grad()
def look(networks: Networks, number: int) -> Pixels:
    """Raises ValueError where there is no teacher, or no prototypes."""
    cfg, student = networks.cfg, networks.student
    if networks.teacher is None or student.prototype_head is None:
        raise ValueError(f"{cfg.OUTPUT_DIR}: expected a run with a teacher and prototypes")
    student.predict_by_prototypes = True
    found = []
    for scene in load_scenes(cfg, first_test_set(cfg), number):
        images = student.normalize([scene.record])
        logits = networks.teacher.model.score(images)
        similarity = student.score(images)
        truth = torch.from_numpy(scene.truth).long()
        found.append(_pixels(logits, similarity / cfg.PROTOTYPES.TEMPERATURE, truth))
    return Pixels(*(torch.cat(column) for column in zip(*found)))


def _pixels(teacher: Tensor, prototypes: Tensor, truth: Tensor) -> Pixels:
    """Of one image: two times (1, C, h, w) logits, and (H, W) labels."""
    known = truth < teacher.shape[1]
    size = {"size": truth.shape, "mode": "bilinear", "align_corners": False}
    by_teacher, by_prototypes = (
        F.interpolate(logits.float(), **size)[0][:, known].log_softmax(0)
        for logits in (teacher, prototypes)
    )
    confidence, label = by_teacher.max(0)
    return Pixels(
        truth[known],
        label,
        by_prototypes.argmax(0),
        (by_teacher + by_prototypes).argmax(0),
        confidence.exp(),
        by_prototypes.gather(0, label[None])[0].exp(),
    )


def labels_by(pixels: Pixels, num_classes: int) -> Table:
    rows: Table = []
    for name in ("teacher", "prototypes", "both"):
        label = getattr(pixels, name)
        counts = torch.bincount(pixels.truth * num_classes + label, minlength=num_classes**2)
        confusion = counts.view(num_classes, num_classes).double()
        right, there = confusion.diagonal(), confusion.sum(1) > 0
        iou = right / (confusion.sum(0) + confusion.sum(1) - right)
        rows.append([name, 100 * iou[there].mean().item(), 100 * _mean(label == pixels.truth)])
    return rows


def judged_by(pixels: Pixels) -> Table:
    right = (pixels.teacher == pixels.truth).numpy()
    judges = {
        "teacher's confidence": pixels.confidence,
        "prototypes' posterior": pixels.posterior,
        "product of both": pixels.confidence * pixels.posterior,
    }
    return [[name, roc_auc_score(right, judge.numpy())] for name, judge in judges.items()]


def trusted(pixels: Pixels, threshold: float, names: Sequence[str]) -> Table:
    """A class of the teacher's labels a row, all of them in the last."""
    right, agree = pixels.teacher == pixels.truth, pixels.teacher == pixels.prototypes
    sure = pixels.confidence >= threshold
    rows: Table = []
    for number, name in [*enumerate(names), (None, "all")]:
        own = torch.ones_like(right) if number is None else pixels.teacher == number
        among = sure & own
        shares = [_mean(sure[own]), _mean(right[among])]
        shares += [_mean((sure & agree)[own]), _mean(right[among & agree])]
        rows.append([name, *(100 * share for share in shares)])
    return rows


def _mean(mask: Tensor) -> float:
    return mask.float().mean().item() if len(mask) else np.nan


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--images", type=int, default=60)
    args = parser.parse_args(words)
    for run in args.runs:
        networks = load_networks(run)
        names = list(networks.metadata.stuff_classes)
        pixels = look(networks, args.images)
        threshold = networks.cfg.SELF_TRAINING.CONFIDENCE_THRESHOLD
        print(f"{run}\n")
        for headers, rows in (
            (["labels by", "mIoU", "right %"], labels_by(pixels, len(names))),
            (["right labels told by", "AUROC"], judged_by(pixels)),
            (
                [f"above {threshold:g}", "of its pixels %", "right %", "and agree %", "right %"],
                trusted(pixels, threshold, names),
            ),
        ):
            digits = ".3f" if "AUROC" in headers else ".2f"
            print(tabulate(rows, headers=headers, floatfmt=digits) + "\n")


if __name__ == "__main__":
    main()
