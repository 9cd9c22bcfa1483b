"""Image files, their label files, and the records that Detectron2's catalog hands out."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from detectron2.utils.logger import log_first_n

from ..utils.messages import shown
from ..utils.zip_files import holds, in_zip, names_below

_FOREIGN = ("@eaDir", "__MACOSX", "#recycle", "$RECYCLE.BIN", "lost+found")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
_OTHERS = (".avif", ".heic", ".jxl", ".jp2", ".gif", ".ppm", ".pgm", ".mp4", ".avi", ".mov", ".mkv")

Record = dict[str, str]


class MissingLabels(FileNotFoundError):
    """Images have no label, or no mask: see ``kind``; ``images`` names all of them."""

    def __init__(self, message: str, images: list[str], kind: str) -> None:
        super().__init__(message)
        self.images, self.kind = images, kind


def is_folder(path: Path) -> bool:
    """Whether a path may be listed: a folder, or one in a zip archive."""
    return path.is_dir() or in_zip(path) is not None


def is_file(path: Path) -> bool:
    """Whether there is a file, on the disk or in a zip archive."""
    place = in_zip(path)
    return path.is_file() if place is None else holds(place)


def list_files(
    folder: Path, suffixes: tuple[str, ...], prefixes: tuple[str, ...] = ()
) -> dict[str, str]:
    """Files below a folder, at any depth, that end with one of the suffixes.

    What is hidden (``.ipynb_checkpoints``, ``._a.png``) or belongs to a file server or an archiver
    (``@eaDir``, ``__MACOSX``) is left out, and so is a folder that a link has led to before. A
    warning counts such files.

    Args:
        folder: where to look, also in a zip archive (``data.zip/images``); links are followed.
        suffixes: ends of names, such as ``"_leftImg8bit.png"``; compared without regard to case.
        prefixes: if any, a name must begin with one of them.
    Returns: key -> path, sorted by key; the key is the path below ``folder`` without the suffix, so
        that an image and its label have the same one. The order is the same on every machine.
    Raises:
        FileNotFoundError: the folder does not exist, or holds no such file.
        ValueError: two files have the same key (``a.png`` and ``a.jpg``), or the archive is
            damaged.
    """
    if not is_folder(folder):
        raise FileNotFoundError(f"folder {shown(folder)} does not exist")
    found: dict[str, str] = {}
    left_out: list[str] = []
    others: list[str] = []
    walk = _walk if in_zip(folder) is None else _walk_zip
    for path in walk(folder, left_out):
        name = os.path.basename(path)
        suffix = next((s for s in suffixes if name.lower().endswith(s.lower())), None)
        if suffix is None or not name.startswith(prefixes or ""):
            others += [path] if name.lower().endswith(_OTHERS) else []
            continue
        key = Path(os.path.relpath(path, folder)).as_posix()[: -len(suffix)]
        if key in found:
            both = f"{shown(found[key])} and {shown(path)}"
            raise ValueError(
                f"{both} have the same name: which is the image? Keep them in two folders, or, in "
                "a description of data, say how images end: image_suffix"
            )
        found[key] = path
    ends = (*(suffix.lower() for suffix in suffixes), os.sep)
    unused = [path for path in left_out if path.lower().endswith(ends)]
    why = "hidden or foreign files, or links to folders that were listed already, such as {}"
    _tell(folder, unused, why)
    if suffixes == IMAGE_SUFFIXES:
        why = "videos, or images of other formats, such as {}; convert what shall count to PNG"
        _tell(folder, others, why)
    if not found:
        wanted = " or ".join(f"{p}*{s}" for p in prefixes or ("",) for s in suffixes)
        raise FileNotFoundError(f"folder {shown(folder)} holds no file {wanted}")
    return dict(sorted(found.items()))


def _tell(folder: Path, left_out: Sequence[str], why: str) -> None:
    if left_out:
        note = (
            f"Left out of folder {shown(folder)}: {len(left_out)} {why.format(shown(left_out[0]))}"
        )
        log_first_n(logging.WARNING, note, key="message")


def _walk(folder: Path, left_out: list[str]) -> Iterator[str]:
    """Files below a folder, each real folder once; ``left_out`` gets hidden and foreign files, and
    links to folders that were listed already, which end with a separator."""
    status = os.stat(folder)
    seen = {(status.st_dev, status.st_ino)}
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        kept = []
        for name in sorted(folders):
            path = os.path.join(parent, name)
            status = os.stat(path)
            if name.startswith(".") or name in _FOREIGN:
                inside = os.walk(path)
                left_out += [os.path.join(p, file) for p, _, files in inside for file in files]
            elif (status.st_dev, status.st_ino) in seen:
                left_out.append(path + os.sep)
            else:
                seen.add((status.st_dev, status.st_ino))
                kept.append(name)
        folders[:] = kept
        for name in sorted(names):
            path = os.path.join(parent, name)
            if name.startswith("."):
                left_out.append(path)
            else:
                yield path


def _raise(error: OSError) -> None:
    """A folder that cannot be listed is no empty one."""
    raise error


def _walk_zip(folder: Path, left_out: list[str]) -> Iterator[str]:
    """As :func:`_walk`, in an archive. Nothing leads out of it: names are never looked up on the
    disk, and those that go up ("..") are left out as hidden ones."""
    place = in_zip(folder)
    assert place is not None
    for name in names_below(place):
        path = f"{place.archive}/{name}"
        parts = name[len(place.name) :].strip("/").split("/")
        if any(part.startswith(".") or part in _FOREIGN for part in parts):
            left_out.append(path)
        else:
            yield path


def sample(records: Sequence[Record], at_most: int = 16) -> Sequence[Record]:
    """Some of the records, evenly spread, the first among them."""
    return records[:: max(1, -(-len(records) // at_most))]


def image_records(images: Mapping[str, str]) -> list[Record]:
    """Records of an image-only set: ``file_name`` and ``image_id``, and no way to any label."""
    return [{"file_name": path, "image_id": key} for key, path in images.items()]


def labelled_records(
    images: Mapping[str, str],
    labels: Mapping[str, str],
    label_folder: Path,
    key: str = "sem_seg_file_name",
) -> list[Record]:
    """Records with ``file_name``, ``image_id`` and, under ``key``, the label; labels of no image
    are left aside.

    Raises: MissingLabels: an image has no label; a ``FileNotFoundError`` that names them.
    """
    missing = [path for name, path in images.items() if name not in labels]
    if missing:
        found = f"{len(missing)} of {len(images)} images, for instance {shown(missing[0])}"
        kind = "label" if key == "sem_seg_file_name" else "mask"
        raise MissingLabels(f"no {kind} in {shown(label_folder)} for {found}", missing, kind)
    return [
        {"file_name": path, "image_id": name, key: labels[name]} for name, path in images.items()
    ]
