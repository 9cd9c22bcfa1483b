"""Looks at every file of a data set before days of training do."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray
from tqdm.contrib.concurrent import thread_map

from ...utils.messages import shown
from ..decoding import BadFile, Size, check_pair, inspect_image, stored_image_size, stored_size
from ..files import MissingLabels, Record
from ..labels import LabelMap, check_ids, fold_ids, inspect_label
from ..statistics import class_table
from .label_ids import LabelIds
from .registration import load_records


class FileReport(NamedTuple):
    """What was found in an image and its label."""

    mode: str  # Pillow's name of the image's mode, or "unreadable"
    size: Size | None  # (height, width) of the image; None if it is unreadable
    label: str  # the label file; "" of an image-only record
    ids: NDArray[np.int64]  # (256,) pixels of each raw id of the label
    palette: bytes | None  # RGB of each id in turn, of a palette label
    turned: bool  # by EXIF, from one picture into another of the same size
    faults: tuple[str, ...]  # sentences that name the file; none if the pair can be used


@dataclass(frozen=True)
class DatasetReport:
    """All files of a set; ``faults`` name their files, and none means fit for training."""

    name: str
    labelled: bool
    files: tuple[FileReport, ...]
    ids: LabelIds
    faults: tuple[str, ...]


def check_record(record: Record, label_map: LabelMap | None, num_classes: int) -> FileReport:
    """Decodes an image and counts the ids of its label.

    Faults are: a file that is missing, broken or of a mode that training refuses, a label that
    holds no class ids (see :func:`mpcl.data.labels.read_label`), an id that is neither a class nor
    ignored, a label or mask of another size than its image.
    """
    image, label = record["file_name"], record.get("sem_seg_file_name", "")
    size, mode, turned, palette = None, "unreadable", False, None
    ids = np.zeros(256, dtype=np.int64)
    faults: list[str] = []

    @contextmanager
    def told(kind: str) -> Iterator[None]:
        try:
            yield
        except BadFile as error:
            faults.append(f"{kind} {error}")

    with told("image"):
        size, mode, turned = inspect_image(image)
    if label:
        with told("label"):
            ids, label_size, palette = inspect_label(label, label_map)
            with told("label"):
                check_ids(label, fold_ids(ids, label_map), num_classes)
            check_pair(image, label, size or label_size, label_size)
    if mask := record.get("valid_file_name"):
        with told("mask"):
            mask_size = inspect_image(mask).size
            check_pair(image, mask, size or mask_size, mask_size)
    return FileReport(mode, size, label, ids, palette, turned, tuple(faults))


def check_headers(records: Iterable[Record]) -> None:
    """Looks at images, and compares them with their labels, by their headers alone, whichever way
    they are turned.

    Raises: BadFile: a header cannot be read, an image has a mode that is refused, or a label has
        another size than its image.
    """
    for record in records:
        image, label = record["file_name"], record.get("sem_seg_file_name", "")
        size = stored_image_size(image)
        label_size = stored_size(label) if label else size
        if sorted(size) != sorted(label_size):
            check_pair(image, label, size, label_size)


def turned_note(files: Sequence[FileReport]) -> str:
    """What to look at where EXIF turns labelled images in a way that no size shows; "" if none."""
    turned = [file.label for file in files if file.turned and file.label]
    if not turned:
        return ""
    return (
        f"{len(turned)} of {len(files)} images are turned by EXIF without a change of size, such "
        f"as that of {shown(turned[0])}: their labels must fit the picture as it is shown"
    )


def label_ids(dataset_name: str, files: Sequence[FileReport]) -> LabelIds:
    """The ids of files of a registered set."""
    metadata = MetadataCatalog.get(dataset_name)
    ids = sum((file.ids for file in files), np.zeros(256, dtype=np.int64))
    label_map, absent = metadata.get("label_map"), metadata.get("absent", ())
    return LabelIds(ids, tuple(metadata.stuff_classes), label_map, absent)


def palette_faults(files: Iterable[FileReport]) -> list[str]:
    """Ids that have one colour in one label and another in the next: one of the two files means
    another class by it."""
    first: dict[int, tuple[bytes, str]] = {}
    faults: dict[int, str] = {}
    for file in files:
        for raw in np.flatnonzero(file.ids).tolist() if file.palette else ():
            color = file.palette[3 * raw : 3 * raw + 3]
            known, other = first.setdefault(raw, (color, file.label))
            if color != known and raw not in faults:
                faults[raw] = (
                    f"the palettes of labels disagree: id {raw} is RGB {list(known)} in "
                    f"{shown(other)} and {list(color)} in {shown(file.label)}; expected one "
                    "meaning of an id: export all masks with one palette"
                )
    return list(faults.values())


def check_dataset(dataset_name: str, num_workers: int = 0) -> DatasetReport:
    """Checks every file of a registered set; images without a label are faults of their own.

    Raises:
        KeyError: the name is not registered.
        FileNotFoundError, ValueError: the set cannot be listed at all.
    """
    metadata = MetadataCatalog.get(dataset_name)
    try:
        records = load_records(dataset_name)
    except MissingLabels as error:
        missing = tuple(f"image {shown(file)} has no {error.kind}" for file in error.images)
        ids, labelled = label_ids(dataset_name, ()), error.kind == "label"
        return DatasetReport(dataset_name, labelled, (), ids, (*missing, str(error)))
    num_classes = len(metadata.stuff_classes)
    check = partial(check_record, label_map=metadata.get("label_map"), num_classes=num_classes)
    desc = f"checking {dataset_name}"
    files = tuple(thread_map(check, records, max_workers=num_workers or 1, desc=desc, disable=None))
    ids, labelled = label_ids(dataset_name, files), "sem_seg_file_name" in records[0]
    faults = [fault for file in files for fault in file.faults] + palette_faults(files)
    if labelled and not any(file.faults for file in files):
        faults += ids.faults()
    return DatasetReport(dataset_name, labelled, files, ids, tuple(faults))


def summary(report: DatasetReport) -> str:
    """The report as text: sizes, modes, classes, and every fault."""
    kind = "labelled" if report.labelled else "image-only"
    lines = [f"{report.name}: {len(report.files)} images, {kind}"]
    if report.files:
        sizes = [f"{f.size[1]}x{f.size[0]}" for f in report.files if f.size]
        lines += [
            f"sizes (width x height): {_tally(sizes)}",
            f"image modes: {_tally([file.mode for file in report.files])}",
        ]
        if report.labelled:
            lines += _class_lines(report)
        if note := turned_note(report.files):
            lines.append(note)
    lines += [f"FAULT {fault}" for fault in report.faults]
    lines.append(f"{report.name}: {len(report.faults) or 'no'} faults")
    return "\n".join(lines)


def _class_lines(report: DatasetReport) -> list[str]:
    found, classes = report.ids, report.ids.classes
    by_class = np.stack([fold_ids(file.ids, found.label_map) for file in report.files])
    by_class = by_class[:, : len(classes)]
    ignored = found.ids[found.ignored()].sum() / max(1, found.ids.sum())
    lines = [
        class_table(classes, by_class),
        f"ignored: {ignored:.2%} of all pixels: {found.ignored_in_words()}",
    ]
    if found.empty_classes:
        lines.append(f"classes without a pixel: {', '.join(found.empty_classes)}")
    empty = int((by_class.sum(1) == 0).sum())
    if empty:
        lines.append(f"labels without a pixel of any class: {empty}")
    return lines


def _tally(values: Sequence[str]) -> str:
    counted = Counter(values).most_common()
    shown_values = [f"{value} ({number})" for value, number in counted[:8]]
    rest = [f"and {len(counted) - 8} more"] if len(counted) > 8 else []
    return ", ".join(shown_values + rest)
