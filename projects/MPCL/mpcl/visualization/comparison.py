"""Predictions of several networks side by side with the ground truth (the paper's Fig. 6)."""

from collections.abc import Mapping

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image
from torch import nn

from ..pictures import colorize, predict
from .canvas import Picture, error_map, fit, grid, with_legend
from .scenes import Scene, load_scenes


def comparison(
    cfg,
    networks: Mapping[str, nn.Module],
    *,
    number: int = 3,
    errors: bool = False,
    width: int = 512,
) -> Image.Image:
    """Evenly spaced images of the first test set: image, ground truth, and each prediction.

    Args:
        networks: detectron2 models by name, in evaluation or training mode; modes are restored.
        number: of images; all, if the set holds fewer.
        errors: below each prediction, where it is wrong.
        width: of a picture, at most, in pixels.

    Raises: ValueError: ``number`` is not positive, or DATASETS.TEST is empty.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; expected a labelled set to compare on")
    dataset = cfg.DATASETS.TEST[0]
    meta = MetadataCatalog.get(dataset)
    rows: list[list[Picture | None]] = []
    for scene in load_scenes(cfg, dataset, number):
        rows += _rows(scene, networks, meta.stuff_colors, errors, width)
    picture = grid(rows, ["image", "ground truth", *networks])
    return with_legend(picture, meta.stuff_classes, meta.stuff_colors)


def _rows(
    scene: Scene, networks: Mapping[str, nn.Module], colors: list, errors: bool, width: int
) -> list[list[Picture | None]]:
    assert scene.truth is not None  # a test set has labels
    image, truth = fit(scene.image, width), fit(scene.truth, width, nearest=True)
    predictions = [
        fit(predict(network, scene.record).cpu().numpy().astype(np.uint8), width, nearest=True)
        for network in networks.values()
    ]
    first = [image, colorize(truth, colors), *(colorize(p, colors) for p in predictions)]
    if not errors:
        return [first]
    return [first, [None, None, *(error_map(image, truth, p) for p in predictions)]]
