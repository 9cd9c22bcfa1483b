"""The classes of a network: their names and colours, and which ids mean them in label files.

A run keeps them beside its config, and a slim file (tools/export.py) inside: a network predicts
without the data that it was trained on, and without their description.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog

from ...utils.atomic_write import write_atomically
from ...utils.foreign_files import read_json
from ...utils.messages import short
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
            if len(known.stuff_classes) == number:
                names = known.stuff_classes
                colors = known.get("stuff_colors") or class_colors(names)
                return _metadata(names, colors, known.get("label_map"))
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
    if not isinstance(content, dict) or not _are_classes(content):
        raise ValueError(
            f"{place}: the classes are {short(content)}; expected names, as many colors of three "
            "values in 0..255, and a label_map of pairs, or none"
        )
    pairs = content.get("label_map")
    raw = [(tuple(key) if isinstance(key, (list, tuple)) else key) for key, _ in pairs or ()]
    label_map = None if pairs is None else dict(zip(raw, (index for _, index in pairs)))
    return _metadata(content["names"], content["colors"], label_map)


def _are_classes(content: dict[str, Any]) -> bool:
    names, colors, pairs = (content.get(key) for key in ("names", "colors", "label_map"))
    if not isinstance(names, (list, tuple)) or not isinstance(colors, (list, tuple)):
        return False
    named = len(names) == len(colors) and all(isinstance(name, str) for name in names)
    return (
        named and all(map(_is_color, colors)) and (pairs is None or _are_pairs(pairs, len(names)))
    )


def _is_color(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 3 and all(map(_is_level, value))


def _is_level(value: Any) -> bool:
    return isinstance(value, int) and 0 <= value <= 255


def _are_pairs(pairs: Any, number: int) -> bool:
    """Whether these are raw ids, or colours, with a class index or IGNORE_LABEL."""
    if not isinstance(pairs, (list, tuple)):
        return False
    if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
        return False
    raw, indices = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    known = all(_is_level(i) and (i < number or i == IGNORE_LABEL) for i in indices)
    return known and (all(map(_is_level, raw)) or all(map(_is_color, raw)))


def _metadata(
    names: Sequence[str], colors: Sequence[Sequence[int]], label_map: LabelMap | None = None
) -> Metadata:
    return Metadata(
        stuff_classes=list(names),
        stuff_colors=[tuple(color) for color in colors],
        ignore_label=IGNORE_LABEL,
        label_map=label_map,
    )
