"""Pixel counts of every class in every label file, computed once and kept.

Rare-class sampling needs them (DAFormer, arXiv:2111.14887), and reading 25,000 labels takes
minutes: the counts are cached next to the labels, or below ``$XDG_CACHE_HOME/mpcl``
(``~/.cache/mpcl``) when that folder is read-only. The cache carries a key of the files (names,
times, sizes), the label map and the classes: whatever changes, counts are computed afresh.
"""

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from detectron2.data import MetadataCatalog
from numpy.typing import NDArray
from tqdm.contrib.concurrent import thread_map

from ..utils.atomic_write import write_atomically
from ..utils.zip_files import on_disk
from .decoding import BadFile
from .labels import LabelMap, check_ids, fold_ids, inspect_label
from .sets.registration import load_records

logger = logging.getLogger(__name__)

_FORMAT = 1


@dataclass(frozen=True)
class ClassStatistics:
    """Pixel counts of a labelled set; N files, C classes."""

    files: tuple[str, ...]  # N label files, in the order of load_records(name)
    counts: NDArray[np.int64]  # (N, C) pixels that are not ignored, at full resolution
    sizes: NDArray[np.int64]  # (N, 2) height and width
    # File -> what is wrong with it, of those that were skipped; their counts are 0.
    bad: dict[str, str] = field(default_factory=dict)


def class_statistics(
    dataset_name: str, num_workers: int = 0, skip_bad: bool = False
) -> ClassStatistics:
    """Counts the pixels of every class in every label of a registered set, if not cached.

    Where several processes train together, the main one is to call it first.

    Args:
        num_workers: threads that read labels, at least one.
        skip_bad: a label that cannot be used counts as one without a class, and is named in the
            result, which is then not cached: a repaired file must not be forgotten.
    Raises:
        BadFile: a label cannot be read, or holds an id that is neither a class nor ignored.
        ValueError: the set has no labels.
        FileNotFoundError: files of the set are missing.
    """
    records = load_records(dataset_name)
    if not all("sem_seg_file_name" in record for record in records):
        raise ValueError(
            f"dataset_name expects a labelled set (<name>_sem_seg_<split>), got {dataset_name!r}"
        )
    files = tuple(record["sem_seg_file_name"] for record in records)
    metadata = MetadataCatalog.get(dataset_name)
    label_map, num_classes = metadata.get("label_map"), len(metadata.stuff_classes)
    parents = {os.path.dirname(os.path.abspath(on_disk(file))) for file in files}
    folder = Path(os.path.commonpath(parents))
    key = _key(files, folder, label_map, num_classes)
    places = _places(folder, dataset_name)
    for place in places:
        cached = _read_cache(place, key, (len(files), num_classes))
        if cached is not None:
            return ClassStatistics(files, *cached)
    bad: dict[str, str] = {}

    def count(file: str) -> tuple[NDArray[np.int64], tuple[int, int]]:
        try:
            ids, size, _ = inspect_label(file, label_map)
            counts = fold_ids(ids, label_map)
            check_ids(file, counts, num_classes)
        except BadFile as error:
            if not skip_bad:
                raise
            bad[error.file] = error.reason
            return np.zeros(num_classes, np.int64), (1, 1)
        return counts[:num_classes], size

    desc = f"counting classes of {dataset_name}"
    rows = thread_map(count, files, max_workers=num_workers or 1, desc=desc, disable=None)
    counts, sizes = (np.array(column, np.int64) for column in zip(*rows))
    statistics = ClassStatistics(files, counts, sizes, dict(sorted(bad.items())))
    if not bad:
        _write_cache(places, key, statistics)
    return statistics


def class_table(names: Sequence[str], counts: NDArray[np.int64]) -> str:
    """A line a class: its share of the counted pixels, the share of the files that hold it, a bar.

    Args:
        names: C names.
        counts: (N, C) pixels of every class in every file.
    """
    pixels = counts.sum(0)
    shares = pixels / max(1, pixels.sum())
    holding = (counts > 0).sum(0) / max(1, len(counts))
    width = max(len("class"), *map(len, names))
    lines = [f"{'class':<{width}}  {'pixels':>9}  {'files':>7}"]
    for name, share, files in zip(names, shares, holding):
        bar = "\u2588" * round(40 * share / max(shares.max(), 1e-9))
        lines.append(f"{name:<{width}}  {share:>9.4%}  {files:>7.1%}  {bar}".rstrip())
    return "\n".join(lines)


def _key(files: Sequence[str], folder: Path, label_map: LabelMap | None, num_classes: int) -> str:
    """Names are relative to the folder, so that data and cache may be moved together."""
    stats = [os.stat(on_disk(file)) for file in files]
    content = {
        "format": _FORMAT,
        "num_classes": num_classes,
        "label_map": None if label_map is None else sorted(label_map.items()),
        "files": [
            (os.path.relpath(file, folder), stat.st_mtime_ns, stat.st_size)
            for file, stat in zip(files, stats)
        ],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _places(folder: Path, dataset_name: str) -> tuple[Path, Path]:
    """Where the cache may lie, the better place first."""
    name = f"class_statistics_{dataset_name}"
    user = Path(os.getenv("XDG_CACHE_HOME") or "~/.cache").expanduser() / "mpcl"
    digest = hashlib.sha256(str(folder).encode()).hexdigest()[:12]
    return folder / f"{name}.npz", user / f"{name}_{digest}.npz"


def _read_cache(
    place: Path, key: str, shape: tuple[int, int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
    try:
        with np.load(place, allow_pickle=False) as cache:
            if str(cache["key"]) != key:
                return None
            counts, sizes = cache["counts"], cache["sizes"]
        if counts.shape != shape or sizes.shape != (shape[0], 2):
            raise ValueError(f"found counts {counts.shape}, expected {shape}")
        return counts, sizes
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        logger.warning("class statistics %s cannot be read (%s): counting again", place, error)
        return None


def _write_cache(places: Sequence[Path], key: str, statistics: ClassStatistics) -> None:
    content = {"key": np.array(key), "counts": statistics.counts, "sizes": statistics.sizes}
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(place, partial(np.savez_compressed, **content))
        except OSError as error:
            logger.info("class statistics cannot be kept as %s: %s", place, error)
        else:
            logger.info("class statistics of %d files kept as %s", len(statistics.files), place)
            return
    logger.warning("class statistics could not be kept anywhere: they are counted in every run")
