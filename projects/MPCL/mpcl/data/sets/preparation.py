"""Turns data sets as their authors publish them into what training reads: 8-bit train-id labels,
class statistics.

The scripts ``datasets/prepare_<name>.py`` are the front ends. Every file is written under a
temporary name and then renamed, so an interrupted run leaves no half-written file, and the next run
does only what is missing.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray
from tqdm.contrib.concurrent import thread_map

from ...utils.atomic_write import write_atomically
from ...utils.cli import add_debug_option, user_errors
from ...utils.messages import short
from ..decoding import BadFile, read_bytes, read_image
from ..files import list_files
from ..labels import LabelMap, lookup_table, read_label
from ..resizing import keep_aspect_size, resize
from ..statistics import class_statistics, class_table
from .registration import root_in_words

logger = logging.getLogger(__name__)

_PUBLISHED_IDS = {*range(35), 255}  # license plates are 34 in GTA5, -1 in Cityscapes

RESIZE_BOX = (1280, 720)
"""(width, height) of the box that GTA5 frames are fitted into before a 512 or 640 crop is cut
(DAFormer)."""


def write_png(path: Path, array: NDArray[Any]) -> None:
    """Writes a PNG (grey, or BGR as OpenCV has it), so that the file is whole or not there at
    all."""
    _, buffer = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 3])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, buffer.tobytes())


def read_synthia_label(path: str | os.PathLike[str], label_map: LabelMap) -> NDArray[np.uint8]:
    """(H, W) train ids of a SYNTHIA label: 16 bits, several channels, the ids in the last one as
    OpenCV orders them. Ids that the map does not name, also those above 255, are 255.

    Raises: ValueError: the file is no such image.
    """
    raw = cv2.imdecode(np.frombuffer(read_bytes(path), np.uint8), cv2.IMREAD_UNCHANGED)
    if raw is None or raw.dtype != np.uint16 or raw.ndim != 3:
        found = "no readable image" if raw is None else f"shape {raw.shape}, {raw.dtype}"
        raise ValueError(
            f"label {os.fspath(path)}: found {found}, expected a 16-bit PNG with several channels"
        )
    ids = np.minimum(raw[:, :, -1], 255).astype(np.uint8)
    return lookup_table({**label_map, 255: 255})[ids]


def read_published_label(path: str | os.PathLike[str], label_map: LabelMap) -> NDArray[np.uint8]:
    """(H, W) train ids of a label of Cityscapes or GTA5.

    Raises: BadFile: as :func:`read_label`, or it holds other ids than these sets have.
    """
    ids = read_label(path)
    found = np.flatnonzero(np.bincount(ids.ravel(), minlength=256))
    if strangers := sorted(set(found.tolist()) - _PUBLISHED_IDS):
        raise BadFile(
            path,
            f"holds the ids {short(strangers)}, expected 0..34 as they are published: a grey copy "
            "of the label's colours has others",
        )
    return lookup_table({**label_map, 255: 255})[ids]


@dataclass(frozen=True)
class Conversion:
    """A folder of published labels, beside which train-id files are written."""

    folder: Path
    raw_suffix: str  # end of the published names: "_labelIds.png"
    train_suffix: str  # what takes its place: "_labelTrainIds.png"
    label_map: Mapping[int, int]  # published id -> train id
    # (path, label_map) -> (H, W) uint8 train ids
    read: Callable[[str, LabelMap], NDArray[np.uint8]] = read_published_label

    def target(self, raw: str) -> Path:
        return Path(raw[: -len(self.raw_suffix)] + self.train_suffix)


def convert_labels(conversion: Conversion, num_workers: int) -> int:
    """Writes the train-id files that are missing; returns how many.

    Raises:
        FileNotFoundError: the folder does not exist or holds no published label.
        ValueError: a label is not in the published format; names the file.
    """
    found = list_files(conversion.folder, (conversion.raw_suffix,))
    raw = [file for file in found.values() if not file.endswith(conversion.train_suffix)]
    if not raw:
        raise FileNotFoundError(
            f"folder {conversion.folder} holds no published label *{conversion.raw_suffix}"
        )
    missing = [file for file in raw if not conversion.target(file).exists()]
    logger.info("%s: %d labels, %d to convert", conversion.folder, len(raw), len(missing))

    def convert(file: str) -> None:
        write_png(conversion.target(file), conversion.read(file, conversion.label_map))

    thread_map(convert, missing, max_workers=num_workers or 1, desc="train ids", disable=None)
    return len(missing)


def resize_set(
    source: Path, destination: Path, label_suffix: str, box: tuple[int, int], num_workers: int
) -> int:
    """Copies ``images/`` and the train ids in ``labels/`` at the size that training would give
    them.

    They are resized as the training loader does, which then finds nothing left to do. Training sees
    the same pixels and decodes less than half of the data.

    Args:
        destination: folder to write; remembers ``box``.
        label_suffix: end of the names of train-id labels.
        box: see :func:`mpcl.data.resizing.keep_aspect_size`.
    Returns: how many files were written.
    Raises:
        FileNotFoundError: images or labels are missing.
        ValueError: the destination was made with another box.
    """
    _remember_box(destination, box)
    jobs = []
    for part, suffix in (("images", ".png"), ("labels", label_suffix)):
        for key, file in list_files(source / part, (suffix,)).items():
            target = destination / part / f"{key}{suffix}"
            if not target.exists():
                jobs.append((file, target, part == "labels"))
    desc = f"resizing to {destination.name}"
    thread_map(partial(_resize, box), jobs, max_workers=num_workers or 1, desc=desc, disable=None)
    return len(jobs)


def _remember_box(destination: Path, box: tuple[int, int]) -> None:
    note = destination / "resized_to.json"
    if note.exists():
        earlier = tuple(json.loads(note.read_text(encoding="utf-8"))["box"])
        if earlier != box:
            raise ValueError(
                f"box expects {earlier}, with which {destination} was made, got {box}; "
                "remove that folder to change the size"
            )
        return
    destination.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps({"box": box}), encoding="utf-8")


def _resize(box: tuple[int, int], job: tuple[str, Path, bool]) -> None:
    file, target, is_label = job
    image = read_label(file) if is_label else read_image(file)
    size = keep_aspect_size(image.shape[:2], box)
    write_png(target, resize(image, size, nearest=is_label))


def argument_parser(description: str, epilog: str) -> argparse.ArgumentParser:
    """Parser that all preparation scripts share: ``--help`` shows their text as it is written, and
    ``--workers``."""
    parser = argparse.ArgumentParser(
        description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=min(16, os.cpu_count() or 1),
        help="files to work on side by side (default: %(default)s)",
    )
    add_debug_option(parser)
    return parser


def run_script(prepare: Callable[[argparse.Namespace], None], arguments: argparse.Namespace) -> int:
    """Runs a preparation; a fault of the data becomes a message and exit status 2."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with user_errors(Path(sys.argv[0]).name, arguments.debug):
        try:
            prepare(arguments)
        except FileNotFoundError as error:
            where = f"Data sets lie below {root_in_words()}. --help shows the expected files."
            raise FileNotFoundError(f"{error}\n{where}") from error
    return 0


def count_classes(dataset_name: str, num_workers: int) -> None:
    """Computes (and keeps) the class statistics of a registered set, and logs a table of them."""
    statistics = class_statistics(dataset_name, num_workers)
    names = MetadataCatalog.get(dataset_name).stuff_classes
    logger.info("%s: %d labels", dataset_name, len(statistics.files))
    logger.info("%s", class_table(names, statistics.counts))
