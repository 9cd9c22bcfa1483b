"""The 19 classes of Cityscapes and its kin, the 11 of CamVid: names, colours, and ids in the files.

GTA5, SYNTHIA, ACDC and Dark Zurich share the 19 classes, which are Detectron2's own
``CITYSCAPES_CATEGORIES`` in the order of the train ids.
"""

from typing import Any

from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

from ..labels import identity_except

_CATEGORIES: list[dict[str, Any]] = sorted(CITYSCAPES_CATEGORIES, key=lambda c: c["trainId"])

CITYSCAPES_CLASSES: list[str] = [category["name"] for category in _CATEGORIES]
CITYSCAPES_COLORS: list[tuple[int, int, int]] = [tuple(c["color"]) for c in _CATEGORIES]

CITYSCAPES_IDS: dict[int, int] = {category["id"]: category["trainId"] for category in _CATEGORIES}
"""Label id -> train id. GTA5 writes the same ids into its palette images."""

# terrain (16), truck (18) and train (20) have an id but no pixel in the data.
SYNTHIA_IDS: dict[int, int] = {
    raw: train_id
    for train_id, raw in enumerate(
        (3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11)
    )
}
"""SYNTHIA (RAND-CITYSCAPES) class id -> train id."""

_CAMVID: dict[str, tuple[int, int, int]] = {
    "Sky": (128, 128, 128),
    "Building": (128, 0, 0),
    "Pole": (192, 192, 128),
    "Road": (128, 64, 128),
    "Pavement": (60, 40, 222),
    "Tree": (128, 128, 0),
    "SignSymbol": (192, 128, 128),
    "Fence": (64, 64, 128),
    "Car": (64, 0, 128),
    "Pedestrian": (64, 64, 0),
    "Bicyclist": (0, 128, 192),
}
CAMVID_CLASSES: list[str] = list(_CAMVID)
CAMVID_COLORS: list[tuple[int, int, int]] = list(_CAMVID.values())
CAMVID_IDS: dict[int, int] = identity_except(len(_CAMVID))
"""The 11 classes are their own ids; 11, Unlabelled, is ignored."""
