"""Test images with ground truth and predictions, small enough for a page."""

import base64
from collections.abc import Mapping
from io import BytesIO
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image

from ...predict.loading import Networks
from ...utils.ignore_label import IGNORE_LABEL
from ...utils.pictures import Picture, fit
from ..scenes import first_test_set, predicted_scenes


def samples(loaded: Mapping[int, Networks], number: int, width: int) -> dict[str, Any]:
    """Evenly spaced images of the first run's first test set, with what each network predicts.

    Args:
        loaded: networks by index of their run; all know the same classes.
        number: of images.
        width: in pixels, at most.
    """
    dataset = first_test_set(next(iter(loaded.values())).cfg)
    meta = MetadataCatalog.get(dataset)
    images = []
    for scene, predicted in predicted_scenes(list(loaded.values()), dataset, number):
        assert scene.truth is not None  # a test set has labels
        truth = fit(scene.truth, width, nearest=True)
        predictions = []
        for index, ids in zip(loaded, predicted):
            ids = fit(ids, width, nearest=True)
            known = truth != IGNORE_LABEL
            wrong = float((ids != truth)[known].mean()) if known.any() else 0.0
            predictions.append({"run": index, "ids": run_lengths(ids), "wrong": round(wrong, 4)})
        images.append(
            {
                "name": scene.file.rpartition("/")[2],
                "src": data_url(fit(scene.image, width)),
                "width": truth.shape[1],
                "height": truth.shape[0],
                "truth": run_lengths(truth),
                "predictions": predictions,
            }
        )
    colors = [list(map(int, color)) for color in meta.stuff_colors]
    return {"classes": list(meta.stuff_classes), "colors": colors, "images": images}


def run_lengths(ids: np.ndarray) -> str:
    """(H, W) class ids row by row as base64 of (id, length high byte, length low byte) triples.

    A run is at most 65535 long. Unlike a PNG read back from a canvas it arrives as it was, whatever
    a browser does to colours.
    """
    flat = ids.ravel()
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    lengths = np.diff(np.r_[starts, len(flat)])
    parts = -(-lengths // 65535)
    values = np.repeat(flat[starts], parts)
    last = lengths - (parts - 1) * 65535
    sizes = np.full(len(values), 65535)
    sizes[np.cumsum(parts) - 1] = last
    triples = np.stack([values, sizes >> 8, sizes & 255], axis=1).astype(np.uint8)
    return base64.b64encode(triples.tobytes()).decode("ascii")


def data_url(picture: Picture) -> str:
    """The picture as a JPEG inside a URL."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
