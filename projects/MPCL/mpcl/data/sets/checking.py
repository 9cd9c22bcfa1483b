"""Looks at every file of a data set before days of training do."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray
from tqdm.contrib.concurrent import thread_map

from ..decoding import BadFile, Size, check_pair, inspect_image
from ..files import MissingLabels, Record
from ..labels import IGNORE_LABEL, LabelMap, check_ids, read_label_histogram
from ..statistics import class_table, fold_histogram
from .registration import load_records


class FileReport(NamedTuple):
    """One image and its label: what was found, and the faults as sentences that name the file."""

    mode: str
    size: Size | None
    counts: NDArray[np.int64]  # (256,) pixels of every class index; 255: ignored
    faults: tuple[str, ...]


@dataclass(frozen=True)
class DatasetReport:
    """All files of a set; ``faults`` name their files, and none means fit for training."""

    name: str
    classes: tuple[str, ...]
    labelled: bool
    files: tuple[FileReport, ...]
    faults: tuple[str, ...]


def check_record(record: Record, label_map: LabelMap | None, num_classes: int) -> FileReport:
    """Decodes an image and counts its label.

    Faults are: a file that is missing, broken or of a mode that training refuses, a label that
    holds no class ids (see :func:`mpcl.data.labels.read_label`), an id that is neither a class nor
    ignored, a label of another size than its image.
    """
    mode, size, faults = _check_image(record["file_name"])
    counts = np.zeros(256, dtype=np.int64)
    label_file = record.get("sem_seg_file_name")
    if label_file is not None:
        try:
            raw, label_size = read_label_histogram(label_file)
        except BadFile as error:
            return FileReport(mode, size, counts, (*faults, f"label {error}"))
        counts = fold_histogram(raw, label_map)
        faults += _label_faults(record, counts, label_size, size, num_classes)
    return FileReport(mode, size, counts, faults)


def _check_image(file: str) -> tuple[str, Size | None, tuple[str, ...]]:
    try:
        header = inspect_image(file)
    except BadFile as error:
        return "unreadable", None, (f"image {error}",)
    return header.mode, header.size, ()


def _label_faults(
    record: Record,
    counts: NDArray[np.int64],
    size: Size,
    image_size: Size | None,
    num_classes: int,
) -> tuple[str, ...]:
    faults = []
    for check in (
        lambda: check_ids(record["sem_seg_file_name"], counts, num_classes),
        lambda: check_pair(record, image_size or size, size),
    ):
        try:
            check()
        except BadFile as error:
            faults.append(f"label {error}")
    return tuple(faults)


def check_dataset(dataset_name: str, num_workers: int = 0) -> DatasetReport:
    """Checks every file of a registered set; images without a label are faults of their own.

    Raises:
        KeyError: the name is not registered.
        FileNotFoundError, ValueError: the set cannot be listed at all.
    """
    metadata = MetadataCatalog.get(dataset_name)
    classes = tuple(metadata.stuff_classes)
    try:
        records = load_records([dataset_name])
    except MissingLabels as error:
        missing = tuple(f"image {file} has no label" for file in error.images)
        return DatasetReport(dataset_name, classes, True, (), (*missing, str(error)))
    check = partial(check_record, label_map=metadata.get("label_map"), num_classes=len(classes))
    desc = f"checking {dataset_name}"
    files = tuple(thread_map(check, records, max_workers=num_workers or 1, desc=desc))
    faults = tuple(fault for file in files for fault in file.faults)
    return DatasetReport(dataset_name, classes, "sem_seg_file_name" in records[0], files, faults)


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
    lines += [f"FAULT {fault}" for fault in report.faults]
    lines.append(f"{report.name}: {len(report.faults) or 'no'} faults")
    return "\n".join(lines)


def _class_lines(report: DatasetReport) -> list[str]:
    counts = np.stack([file.counts for file in report.files])
    by_class = counts[:, : len(report.classes)]
    ignored = counts[:, IGNORE_LABEL].sum() / max(1, counts.sum())
    lines = [class_table(report.classes, by_class), f"ignored: {ignored:.2%} of all pixels"]
    absent = [name for name, count in zip(report.classes, by_class.sum(0)) if not count]
    if absent:
        lines.append(f"classes without a pixel: {', '.join(absent)}")
    empty = int((by_class.sum(1) == 0).sum())
    if empty:
        lines.append(f"labels without a pixel of any class: {empty}")
    return lines


def _tally(values: Sequence[str]) -> str:
    counted = Counter(values).most_common()
    shown = [f"{value} ({number})" for value, number in counted[:8]]
    rest = [f"and {len(counted) - 8} more"] if len(counted) > 8 else []
    return ", ".join(shown + rest)
