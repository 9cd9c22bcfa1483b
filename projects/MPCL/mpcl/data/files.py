"""Image files, their label files, and the records that Detectron2's catalog hands out."""

import os
from collections.abc import Mapping
from pathlib import Path

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

Record = dict[str, str]


class MissingLabels(FileNotFoundError):
    """Images of a labelled set have no label; ``images`` names all of them."""

    def __init__(self, message: str, images: list[str]) -> None:
        super().__init__(message)
        self.images = images


def list_files(
    folder: Path, suffixes: tuple[str, ...], prefixes: tuple[str, ...] = ()
) -> dict[str, str]:
    """Files below a folder, at any depth, that end with one of the suffixes; no hidden ones.

    Args:
        folder: where to look; links are followed.
        suffixes: ends of names, such as ``"_leftImg8bit.png"``; compared without regard to case.
        prefixes: if any, a name must begin with one of them.

    Returns:
        key -> path, sorted by key; the key is the path below ``folder`` without the suffix, so that
        an image and its label have the same one. The order is the same on every machine.

    Raises:
        FileNotFoundError: the folder does not exist, or holds no such file.
        ValueError: two files have the same key (``a.png`` and ``a.jpg``).
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"folder {folder} does not exist")
    found: dict[str, str] = {}
    for parent, _, names in os.walk(folder, followlinks=True):
        for name in names:
            suffix = next((s for s in suffixes if name.lower().endswith(s.lower())), None)
            hidden = name.startswith(".")  # macOS puts ._a.png beside a.png
            if suffix is None or hidden or not name.startswith(prefixes or ""):
                continue
            path = os.path.join(parent, name)
            key = Path(os.path.relpath(path, folder)).as_posix()[: -len(suffix)]
            if key in found:
                raise ValueError(f"{found[key]} and {path} have the same name: which is the image?")
            found[key] = path
    if not found:
        wanted = " or ".join(f"{p}*{s}" for p in prefixes or ("",) for s in suffixes)
        raise FileNotFoundError(f"folder {folder} holds no file {wanted}")
    return dict(sorted(found.items()))


def image_records(images: Mapping[str, str]) -> list[Record]:
    """Records of an image-only set: ``file_name`` and ``image_id``, and no way to any label."""
    return [{"file_name": path, "image_id": key} for key, path in images.items()]


def labelled_records(
    images: Mapping[str, str], labels: Mapping[str, str], label_folder: Path
) -> list[Record]:
    """Records with ``file_name``, ``image_id`` and ``sem_seg_file_name``; labels of no image are
    left aside.

    Raises:
        MissingLabels: an image has no label; a ``FileNotFoundError`` that names them.
    """
    missing = [path for key, path in images.items() if key not in labels]
    if missing:
        found = f"{len(missing)} of {len(images)} images, for instance {missing[0]}"
        raise MissingLabels(f"no label in {label_folder} for {found}", missing)
    return [
        {"file_name": path, "image_id": key, "sem_seg_file_name": labels[key]}
        for key, path in images.items()
    ]
