"""What can be known of data sets before training starts: whether they are there, of the kind that
is wanted, readable, and labelled with the classes that the network has."""

import os
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import NamedTuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.decoding import Size
from ..data.files import Record, sample
from ..data.resizing import keep_aspect_size, scale_factors
from ..data.sets.checking import (
    FileReport,
    check_headers,
    check_record,
    label_ids,
    palette_faults,
    turned_note,
)
from ..data.sets.registration import check_ignore_label, load_records, registered_names
from .reading import get

_SETS = "See datasets/README.md; tools/check_data.py --list shows the names"


class SetRole(NamedTuple):
    """What a config wants of the sets under one of its keys."""

    key: str
    labelled: bool
    size_key: str = ""  # of the box that training images are fitted into; "" = not trained on


SOURCE = SetRole("DATASETS.TRAIN", True, "SOURCE_SIZE")
TARGET = SetRole("DATASETS.TRAIN_TARGET", False, "TARGET_SIZE")
TEST = SetRole("DATASETS.TEST", True)


class SetChecks:
    """The checks of data sets.

    Attributes:
        notes: what was found that does not stop the run.
        scales: by how much the images of sets to train on are resized.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.notes: list[str] = []
        self.scales: dict[str, list[float]] = {}
        self.learned: set[str] = set()  # images that are trained on with their labels

    def checks(self, role: SetRole) -> list[Callable[[], object]]:
        names = get(self.cfg, role.key) or ([""] if role.size_key else [])
        return [partial(self._check, role, name) for name in names]

    def _check(self, role: SetRole, name: str) -> None:
        records = _records(role, name)
        classes = self._check_classes(role, name)
        reports = self._check_files(role, name, records)
        self._note_overlap(role, name, records)
        if reports and classes is not None:
            self._check_labels(role, name, reports, whole=len(reports) == len(records))
        if reports and role.size_key:
            self._note_padding(role, name, reports)
            box = tuple(self.cfg.INPUT[role.size_key])
            self.scales[name] = scale_factors(sample(records, 100), box)

    def _check_classes(self, role: SetRole, name: str) -> Sequence[str] | None:
        """The classes of a labelled set, as many as the network's; None where they are unknown."""
        if not role.labelled:
            return None
        check_ignore_label(name)
        classes = MetadataCatalog.get(name).get("stuff_classes")
        num_classes = self.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        if classes is None:
            return None
        if len(classes) != num_classes:
            raise ValueError(
                f"{role.key}: {name} has {len(classes)} classes, but "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}; expected the same number: "
                f"set it to {len(classes)}, or name other sets"
            )
        self._compare_classes(role, name, classes)
        return classes

    def _check_files(self, role: SetRole, name: str, records: Sequence[Record]) -> list[FileReport]:
        """Decodes some files, reads the headers of many; returns what of the former is usable."""
        label_map = MetadataCatalog.get(name).get("label_map")
        num_classes = self.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        reports = [check_record(record, label_map, num_classes) for record in sample(records)]
        faults = [fault for report in reports for fault in report.faults]
        skipped = role.size_key and self.cfg.DATALOADER.ON_BAD_FILE == "skip"
        if faults and not skipped:
            raise ValueError(f"{role.key}: {name}: {faults[0]}")
        self.notes += [f"{name}: {fault} (it will be skipped)" for fault in faults]
        if not skipped:
            check_headers(sample(records, 2000))
        return [report for report in reports if not report.faults]

    def _note_overlap(self, role: SetRole, name: str, records: Sequence[Record]) -> None:
        """Where images that are scored are also trained on with their labels."""
        files = {os.path.realpath(record["file_name"]) for record in records}
        if role is SOURCE:
            self.learned |= files
        if role is TEST and (both := len(files & self.learned)):
            self.notes.append(
                f"{both} of the {len(files)} images of {name} are trained on with their "
                "labels (DATASETS.TRAIN): the scores say nothing about other images"
            )

    def _compare_classes(self, role: SetRole, name: str, classes: Sequence[str]) -> None:
        """Notes that a set calls as many classes otherwise than the first source; raises where one
        name stands for two indices."""
        first = self.cfg.DATASETS.TRAIN[0] if self.cfg.DATASETS.TRAIN else name
        known = MetadataCatalog.get(first).get("stuff_classes") if first in DatasetCatalog else None
        if known is None or len(known) != len(classes) or list(known) == list(classes):
            return
        differ = [(i, a, b) for i, (a, b) in enumerate(zip(known, classes)) if a != b]
        index, ours, other = differ[0]
        text = f"{role.key}: class {index} is {other!r} in {name} and {ours!r} in {first}"
        if any(b in known for _, _, b in differ):
            raise ValueError(f"{text}; expected one order of the classes in all sets")
        self.notes.append(text)

    def _check_labels(
        self, role: SetRole, name: str, reports: Sequence[FileReport], whole: bool
    ) -> None:
        """Notes what the ids in some labels, or in the whole set, say; raises where that is
        certain."""
        ids = label_ids(name, reports)
        faults = ids.faults(sample=role is TEST or not whole)
        if role is SOURCE:
            certain = whole and len(self.cfg.DATASETS.TRAIN) == 1
        else:  # a few images may show few classes, but one class alone says nothing
            certain = whole and not ids.usable
        if fatal := [*palette_faults(reports), *(faults if certain else [])]:
            raise ValueError(f"{role.key}: {name}: {fatal[0]}")
        unnamed = "" if faults else ids.unnamed_note()
        self.notes += [
            f"{name}, {len(reports)} labels that were looked at: {note}"
            for note in (*faults, unnamed, turned_note(reports))
            if note
        ]

    def _note_padding(self, role: SetRole, name: str, reports: Sequence[FileReport]) -> None:
        """Where the crop is larger than the resized images, or some of them; names the smallest."""
        box, crop = tuple(self.cfg.INPUT[role.size_key]), tuple(self.cfg.INPUT.CROP.SIZE)

        def shown(size: Size) -> float:
            return min(size[0], crop[0]) * min(size[1], crop[1]) / (crop[0] * crop[1])

        sizes = [keep_aspect_size(report.size, box) for report in reports]
        smallest, mean = min(sizes, key=shown), sum(map(shown, sizes)) / len(sizes)
        if mean < 1:
            self.notes.append(
                f"INPUT.CROP.SIZE {crop} is larger than images of {name}, such as height x width "
                f"{smallest} at INPUT.{role.size_key} {box}: {1 - mean:.0%} of the crops is "
                "padding, which is never learned from. A smaller crop, or a larger size, would "
                "waste less"
            )


def _records(role: SetRole, name: str) -> list[Record]:
    """Those of a set that is there, and of the kind that the role wants."""
    if not name:
        kind = "labelled" if role.labelled else "image-only"
        raise ValueError(f"{role.key} is empty; expected the names of {kind} data sets. {_SETS}")
    if name not in DatasetCatalog:
        known = registered_names()
        similar = ", ".join(get_close_matches(name, known, n=3) or known)
        raise ValueError(f"{role.key} names {name!r}, which is unknown; known: {similar}. {_SETS}")
    try:
        records = load_records(name)
    except FileNotFoundError as error:
        # Our own sets say all; those of detectron2 leave it at the operating system's words.
        own = error.strerror is None
        missing = f"{error.filename} does not exist. See datasets/README.md"
        text = str(error) if own else f"data set {name!r}: {missing}"
        raise ValueError(f"{role.key}: {text}") from error
    except AssertionError as error:
        raise ValueError(f"{role.key}: {error or name}") from error
    if not records:
        raise ValueError(f"{role.key}: {name} holds no image; expected at least one. {_SETS}")
    labelled = "sem_seg_file_name" in records[0]
    if role.labelled and not labelled:
        raise ValueError(
            f"{role.key} expects labelled sets, but {name} is image-only; name a set "
            "<name>_sem_seg_<split>, or give its labels"
        )
    if labelled and not role.labelled:
        raise ValueError(
            f"{role.key} expects image-only sets, but {name} has labels, which adaptation must not "
            "see; name a set <name>_images_<split>"
        )
    return records
