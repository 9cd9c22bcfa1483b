"""The user's own ids back: from class indices to what the label files of a data set hold."""

import logging

import numpy as np
from detectron2.data import Metadata

from ..data.labels import LabelMap, maps_colors
from ..data.sets.driving_classes import CITYSCAPES_CLASSES, CITYSCAPES_IDS

logger = logging.getLogger(__name__)


def is_cityscapes(metadata: Metadata) -> bool:
    """Whether the classes are Cityscapes' 19."""
    return list(metadata.stuff_classes) == CITYSCAPES_CLASSES


def own_ids(metadata: Metadata) -> np.ndarray:
    """(256,) uint8 table from class index to label id; (256, 3) RGB where labels are colours.

    It is the inverse of the set's ``label_map``; without one, class indices are the ids, and those
    of Cityscapes' label files where the classes are Cityscapes'. Of several ids that mean one class
    the first that the map names is taken, which a warning says.

    Raises: ValueError: no id means one of the classes.
    """
    label_map: LabelMap | None = metadata.get("label_map")
    if label_map is None and is_cityscapes(metadata):
        label_map = {raw: index for raw, index in CITYSCAPES_IDS.items() if raw >= 0}
    if label_map is None:
        return np.arange(256, dtype=np.uint8)
    classes = list(metadata.stuff_classes)
    ids: dict[int, list] = {index: [] for index in range(len(classes))}
    for raw, index in label_map.items():
        ids.get(index, []).append(raw)
    if lacking := [classes[index] for index, raws in ids.items() if not raws]:
        raise ValueError(f"label_ids: no id in label_map means {', '.join(lacking)}")
    if several := [
        f"{classes[index]} {raws[0]} (of {', '.join(map(str, raws))})"
        for index, raws in ids.items()
        if len(raws) > 1
    ]:
        logger.warning(f"label_ids: several ids mean one class; written is {'; '.join(several)}")
    table = np.zeros((256, 3) if maps_colors(label_map) else 256, np.uint8)
    for index, raws in ids.items():
        table[index] = raws[0]
    return table
