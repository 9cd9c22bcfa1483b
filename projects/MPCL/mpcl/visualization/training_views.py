"""What self-training sees: class-mix samples, and pseudo-labels with their confidence."""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.utils.env import seed_all_rng
from PIL import Image
from torch import Tensor, nn

from ..data.build import build_paired_loader
from ..data.mapper import beyond_margins
from ..engine.adaptation import AdaptationHook
from ..predict.loading import Networks, refuse_other_classes
from ..self_training.pseudo_label import PseudoLabels, most_probable
from ..self_training.teacher import EMATeacher
from ..structures import Step, View
from ..utils.ignore_label import IGNORE_LABEL
from ..utils.pictures import (
    IGNORED_COLOR,
    Picture,
    colorize,
    fit,
    grid,
    heat,
    with_legend,
    with_scale,
)
from ..utils.seeding import fold_seed
from .scenes import Scene, check_number, load_scenes

_WIDTH = 512  # of an image, pixels


def _teacher_of(networks: Networks):
    if networks.teacher is None:
        raise ValueError("the checkpoint holds no teacher: it was trained on the source alone")
    return networks.teacher


@torch.no_grad()
def class_mix_figure(networks: Networks, *, number: int = 4) -> Image.Image:
    """Samples as self-training makes them: source, target, the teacher's label and its confidence,
    mixed image and mixed label.

    The crops are those of the run's first iterations, whatever the checkpoint's: checkpoints of a
    run show the same ones. Its teacher labels them, in float32.

    Raises: ValueError: the checkpoint holds no teacher, or ``number`` is not positive.
    """
    check_number(number)
    teacher = _teacher_of(networks)
    cfg = networks.cfg.clone()
    cfg.defrost()
    cfg.SELF_TRAINING.FEATURE_DISTANCE.WEIGHT = 0.0  # no picture shows it
    cfg.DATALOADER.NUM_WORKERS = 0
    hook = AdaptationHook.from_config(cfg, networks.student, teacher)
    teacher.train()  # batch norm as in training
    colors = networks.metadata.stuff_colors
    rows = list(islice(_mixed_rows(cfg, networks.student, hook, colors), number))
    teacher.eval()
    captions = ["source", "its label", "target", "pseudo-label", "confidence", "mixed", "its label"]
    picture = with_legend(grid(rows, captions), networks.metadata.stuff_classes, colors)
    return with_scale(picture, "confidence")


def _mixed_rows(
    cfg, student: nn.Module, hook: AdaptationHook, colors: list
) -> Iterator[list[Picture]]:
    """A row of pictures for each image of each batch; the iterator has no end."""
    for iteration, batch in enumerate(build_paired_loader(cfg)):
        seed_all_rng(fold_seed(cfg.SEED, 0, iteration))
        step = Step.from_batch(iteration, batch, student.normalize)
        source = step.source
        logits = hook.teacher.model.score(step.target.images)
        target, _ = hook.pseudo_labels(logits, step.target)
        probability, _ = most_probable(logits, target.label.shape[-2:])
        mixed = hook.mix(source, target)
        for i in range(len(source.label)):
            yield [
                student.denormalize(source.images[i]),
                colorize(source.label[i], colors),
                student.denormalize(target.images[i]),
                colorize(target.label[i], colors),
                heat(probability[i].cpu().numpy()),
                student.denormalize(mixed.images[i]),
                colorize(mixed.label[i], colors),
            ]


class PseudoLabelQuality(NamedTuple):
    """Shares of the labelled pixels: confident ones (threshold reached, outside the margins), right
    ones, and right ones of the confident (None: no pixel is)."""

    confident: float
    right: float
    confident_right: float | None


@torch.no_grad()
def pseudo_label_figure(
    networks: Networks, *, number: int = 4
) -> tuple[Image.Image, PseudoLabelQuality | None]:
    """Whole target images, what the teacher calls them, how sure it is (0 dark to 1 yellow), and
    what of that is confident.

    Returns: The figure; and if the first of DATASETS.TRAIN_TARGET has labels, which training never
        reads there, how many pseudo-labels of all ``number`` images are right. The figure then
        shows the ground truth as well.
    Raises: ValueError: the checkpoint holds no teacher, or the set has other classes.
    """
    teacher, cfg = _teacher_of(networks), networks.cfg
    colors, threshold = networks.metadata.stuff_colors, cfg.SELF_TRAINING.CONFIDENCE_THRESHOLD
    dataset = cfg.DATASETS.TRAIN_TARGET[0]
    rows: list[list[Picture]] = []
    counts = np.zeros(4, np.int64)  # labelled pixels; of these the confident, the right, both
    for scene in load_scenes(cfg, dataset, number):
        target, probability = _label(scene, teacher, cfg)
        label, confident = target.label[0].cpu().numpy(), target.trusted[0].cpu().numpy()
        picture = colorize(label, colors)
        sure = np.where(confident[..., None], picture, IGNORED_COLOR).astype(np.uint8)
        shown = [scene.image, picture, heat(probability[0].cpu().numpy()), sure]
        if scene.truth is not None:
            refuse_other_classes(networks, dataset)
            shown.append(colorize(scene.truth, colors))
            known, right = scene.truth != IGNORE_LABEL, label == scene.truth
            counts += [m.sum() for m in (known, known & confident, right, right & confident)]
        rows.append([fit(picture, _WIDTH, nearest=True) for picture in shown])
    captions = ["target", "pseudo-label", "confidence", f"confidence ≥ {threshold:g}"]
    captions += ["ground truth"] * (len(rows[0]) - len(captions))
    picture = with_legend(grid(rows, captions), networks.metadata.stuff_classes, colors)
    return with_scale(picture, "confidence"), _quality(*counts.tolist())


def _quality(labelled: int, confident: int, right: int, both: int) -> PseudoLabelQuality | None:
    if not labelled:
        return None
    of_confident = both / confident if confident else None
    return PseudoLabelQuality(confident / labelled, right / labelled, of_confident)


def _label(scene: Scene, teacher: EMATeacher, cfg: CfgNode) -> tuple[View, Tensor]:
    """The image at its own size, labelled by the teacher, and the probability of its labels."""
    logits = teacher.model([scene.record])[0]["sem_seg"][None]
    size, st = logits.shape[-2:], cfg.SELF_TRAINING
    valid = beyond_margins(size, st.IGNORE_MARGINS)
    valid &= beyond_margins(size, (st.IGNORE_TOP, st.IGNORE_BOTTOM, 0.0, 0.0))
    everywhere = torch.from_numpy(valid).bool().to(logits.device)[None]
    unlabelled = View.of_target(logits[:, :3], everywhere, everywhere)
    target, _ = PseudoLabels.from_config(cfg)(logits, unlabelled)
    return target, most_probable(logits, size)[0]
