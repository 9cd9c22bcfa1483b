"""Predictions of several networks side by side with the ground truth (the paper's Fig. 6)."""

from collections.abc import Mapping

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image

from ..predict.loading import Networks, refuse_other_classes
from ..utils.pictures import ERROR_COLORS, Picture, colorize, error_map, fit, grid, with_legend
from .scenes import first_test_set, predicted_scenes


def comparison(
    networks: Mapping[str, Networks], *, number: int = 3, errors: bool = False, width: int = 512
) -> Image.Image:
    """Evenly spaced images of a test set: image, ground truth, and each prediction.

    Args:
        networks: by name. The set is the first of the first config's DATASETS.TEST.
        number: of images; all, if the set holds fewer.
        errors: below each prediction, where it is wrong.
        width: of a picture, at most, in pixels.
    Raises: ValueError: ``number`` is not positive, DATASETS.TEST is empty, or a network knows other
        classes than the set, or the set has no labels.
    """
    dataset = first_test_set(next(iter(networks.values())).cfg)
    for name, each in networks.items():
        try:
            refuse_other_classes(each, dataset)
        except ValueError as error:
            raise ValueError(f"{name} cannot be compared: {error}") from None
    meta = MetadataCatalog.get(dataset)
    rows: list[list[Picture | None]] = []
    for scene, predictions in predicted_scenes(list(networks.values()), dataset, number):
        if scene.truth is None:
            raise ValueError(f"{dataset} has no labels; expected a set <name>_sem_seg_<split>")
        small = [fit(ids, width, nearest=True) for ids in (scene.truth, *predictions)]
        rows += _rows(fit(scene.image, width), small, meta.stuff_colors, errors)
    picture = grid(rows, ["image", "ground truth", *networks])
    colors = dict(zip(meta.stuff_classes, meta.stuff_colors))
    colors |= ERROR_COLORS if errors else {}
    return with_legend(picture, list(colors), list(colors.values()))


def _rows(
    image: Picture, labels: list[np.ndarray], colors: list, errors: bool
) -> list[list[Picture | None]]:
    """The rows of one image; ``labels`` are the truth, then the predictions."""
    first: list[Picture | None] = [image, *(colorize(ids, colors) for ids in labels)]
    if not errors:
        return [first]
    truth, *predictions = labels
    return [first, [None, None, *(error_map(image, truth, p) for p in predictions)]]
