"""The classes of a network: their names and colours, and which ids mean them in label files.

A run keeps them beside its config, and a slim file (tools/export.py) inside: a network predicts
without the data that it was trained on, and without their description.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from numpy.typing import NDArray

from ...utils.atomic_write import write_atomically
from ...utils.foreign_files import read_json
from ...utils.short import short
from ..labels import IGNORE_LABEL, LabelMap
from .custom import class_colors
from .driving_classes import CITYSCAPES_CLASSES, CITYSCAPES_COLORS

_FILE = "classes.json"


def classes_of(cfg: CfgNode) -> Metadata:
    """Those of a data set of the config, if one has as many as the model; else what is known."""
    number = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if name in MetadataCatalog and len(MetadataCatalog.get(name).get("stuff_classes", ())):
            known = MetadataCatalog.get(name)
            if len(known.stuff_classes) == number and known.get("stuff_colors"):
                return known
    if number == len(CITYSCAPES_CLASSES):
        return _metadata(CITYSCAPES_CLASSES, CITYSCAPES_COLORS)
    names = [f"class {i}" for i in range(number)]
    return _metadata(names, class_colors(names))


def write_classes(folder: str | Path, classes: Metadata) -> None:
    """Keeps them in the output folder of a run."""
    write_atomically(Path(folder) / _FILE, json.dumps(plain(classes)).encode())


def read_classes(folder: str | Path) -> Metadata | None:
    """Those of a run; None where it has kept none.

    Raises: ValueError: the file is damaged.
    """
    file = Path(folder) / _FILE
    return from_plain(read_json(file), str(file)) if file.exists() else None


def plain(classes: Metadata) -> dict[str, Any]:
    """``names``, ``colors`` and ``label_map`` (pairs of raw id or colour, and class index; None
    where files hold class indices), in lists alone; ids that mean neither a class nor "ignored",
    which a set without such ids may name, are left out."""
    known = (*range(len(classes.stuff_classes)), IGNORE_LABEL)
    label_map = classes.get("label_map")
    return {
        "names": list(classes.stuff_classes),
        "colors": [list(map(int, color)) for color in classes.stuff_colors],
        "label_map": None
        if label_map is None
        else [[raw, index] for raw, index in label_map.items() if index in known],
    }


def from_plain(content: Any, place: str) -> Metadata:
    """What :func:`plain` has written, and may have come from anywhere.

    Args:
        place: of the content, for messages.
    Raises: ValueError: it is something else.
    """
    try:
        names, colors = content["names"], _levels(content["colors"])
        if colors.shape != (len(names), 3) or not all(isinstance(name, str) for name in names):
            raise ValueError
        pairs = content.get("label_map")
        label_map = None if pairs is None else _label_map(pairs, len(names))
    except (AttributeError, LookupError, TypeError, ValueError, OverflowError):
        raise ValueError(
            f"{place}: the classes are {short(content)}; expected names, as many colors of three "
            "values in 0..255, and a label_map of pairs, or none"
        ) from None
    return _metadata(names, colors.tolist(), label_map)


def _label_map(pairs: Any, number: int) -> LabelMap:
    """Raw id, or colour, -> class index below ``number``, or IGNORE_LABEL."""
    raw, indices = [key for key, _ in pairs], [index for _, index in pairs]
    keys = _levels(raw)
    if keys.shape[1:] not in ((), (3,)) or not {*indices} <= {*range(number), IGNORE_LABEL}:
        raise ValueError
    return dict(zip([tuple(key) if keys.ndim == 2 else key for key in keys.tolist()], indices))


def _levels(values: Any) -> NDArray[np.integer]:
    """Whole numbers in 0..255, as an array; ValueError for anything else."""
    array = np.array(values)
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise ValueError
    return array


def _metadata(
    names: Sequence[str], colors: Sequence[Sequence[int]], label_map: LabelMap | None = None
) -> Metadata:
    return Metadata(
        stuff_classes=list(names),
        stuff_colors=[tuple(color) for color in colors],
        ignore_label=IGNORE_LABEL,
        label_map=label_map,
    )
