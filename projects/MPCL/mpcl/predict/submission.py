"""Packages for the test servers of ACDC and Dark Zurich: written, and checked file by file.

Both servers take a zip of 8-bit PNGs that hold train ids (0..18) at the images' own size, one for
each test image, found by the beginning of its name, ``<sequence>_frame_<number>``. The head of
tools/submit.py says what of this is confirmed, and by what.
"""

import lzma
import os
import zipfile
from collections import Counter
from pathlib import Path, PurePosixPath
from string import Formatter

import cv2
import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import nn
from tqdm import tqdm

from ..data.build import build_test_loader
from ..data.decoding import BadFile, opened, pixel_limit
from ..data.sets.registration import load_records
from ..utils.foreign_files import check_regular
from ..utils.ignore_label import IGNORE_LABEL
from ..utils.zip_files import DAMAGED
from .predictor import predict

IMAGE_SUFFIX = "_rgb_anon.png"
NAMES = "{folder}/{frame}" + IMAGE_SUFFIX
_UNREADABLE = (*DAMAGED, lzma.LZMAError, OSError)  # or packed in a way that is seldom used
# Dark Zurich's server also scores uncertainty (UIoU) and refuses a package without its two folders.
FOLDERS = {
    "acdc": ("labelTrainIds",),
    "dark_zurich": ("labelTrainIds", "labelTrainIds_invalid", "confidence"),
}


def folders_of(dataset: str) -> tuple[str, ...]:
    """Folders of a package, one file an image in each.

    Raises: ValueError: no server takes predictions of this set.
    """
    for server, folders in FOLDERS.items():
        of_server = dataset.startswith(f"{server}_") and dataset.endswith("_images_test")
        if of_server and dataset in DatasetCatalog:
            return folders
    raise ValueError(
        f"dataset is {dataset!r}; expected acdc_images_test, acdc_<condition>_images_test or "
        "dark_zurich_images_test"
    )


def frames_of(dataset: str) -> dict[str, str]:
    """``<sequence>_frame_<number>`` -> image file, of every image of a test set.

    Raises: ValueError: two images have the same frame name.
    """
    files = [record["file_name"] for record in load_records(dataset)]
    frames = {Path(file).name.removesuffix(IMAGE_SUFFIX): file for file in files}
    if len(frames) != len(files):
        twice = [f for f, n in Counter(Path(file).name for file in files).items() if n > 1]
        raise ValueError(f"{dataset} holds images of the same name: {', '.join(twice)}")
    return frames


def write_submission(
    package: Path, cfg, network: nn.Module, dataset: str, names: str = NAMES
) -> list[str]:
    """Predicts every image of a test set and packs the predictions; then :func:`check_submission`.

    An existing package is replaced only by one that is complete and free of faults; a faulty one
    stays beside it as ``<package>.partial``.

    ``labelTrainIds_invalid`` repeats the predictions and ``confidence`` is full everywhere, so that
    the uncertainty-aware scores of Dark Zurich's server equal its IoU: no uncertainty is claimed.

    Args:
        names: of the files; ``{folder}`` and ``{frame}`` are filled in.
    Returns: the faults; none means fit for the server.
    """
    folders = folders_of(dataset)
    fields = {field for _, field, _, _ in Formatter().parse(names) if field is not None}
    if "frame" not in fields or not fields <= {"folder", "frame"}:
        raise ValueError(f"names is {names!r}; expected {{frame}} in it, and {{folder}} at most")
    frames_of(dataset)  # a set that cannot be packed fails here, not after hours
    if len({names.format(folder=folder, frame="") for folder in folders}) < len(folders):
        raise ValueError(f"names is {names!r}; this server's packages need {{folder}} in it")
    if PurePosixPath(names).is_absolute() or ".." in PurePosixPath(names.replace("\\", "/")).parts:
        raise ValueError(f"names is {names!r}; expected a path inside the package, without '..'")
    partial = package.with_name(package.name + ".partial")
    package.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(partial, "w") as archive:  # stored: PNGs are compressed already
            for (record,) in tqdm(build_test_loader(cfg, dataset), desc=dataset, disable=None):
                frame = Path(record["file_name"]).name.removesuffix(IMAGE_SUFFIX)
                classes = predict(network, record)
                sure = np.full(classes.shape, 65535, np.uint16)
                for folder in folders:
                    content = sure if folder == "confidence" else classes
                    png = cv2.imencode(".png", content)[1].tobytes()
                    archive.writestr(names.format(folder=folder, frame=frame), png)
    except BaseException:  # an interrupt, too
        partial.unlink(missing_ok=True)
        raise
    faults = check_submission(partial, dataset)
    if not faults:
        os.replace(partial, package)
    return faults


def check_submission(package: Path, dataset: str) -> list[str]:
    """Opens a package, of whatever origin, and compares it with the test set.

    Returns: a sentence for each fault, naming the file: an image without a prediction or with two,
    a prediction of the wrong size, format or ids, and files that belong to no image.
    Raises:
        FileNotFoundError: the package or the test set does not exist.
        ValueError: the package is no regular file.
    """
    folders, frames = folders_of(dataset), frames_of(dataset)
    num_classes = len(MetadataCatalog.get(dataset).stuff_classes)
    check_regular(package)
    try:
        with zipfile.ZipFile(package) as archive:
            entries: dict[tuple[str, str], list[str]] = {}
            faults = []
            for name in (e.filename for e in archive.infolist() if not e.is_dir()):
                place = _place(name, folders, frames)
                if place is None:
                    faults.append(f"{name} belongs to no image of {dataset}")
                else:
                    entries.setdefault(place, []).append(name)
            for folder in folders:
                for frame, image in frames.items():
                    found = entries.get((folder, frame), [])
                    if not found:
                        faults.append(f"missing: {folder}/{frame}*.png, of {image}")
                    elif len(found) > 1:
                        faults.append(f"{image} has {len(found)} predictions: {', '.join(found)}")
                    else:
                        faults += _content_faults(archive, found[0], folder, image, num_classes)
    except _UNREADABLE as error:
        return [f"{package} is no readable zip: {error}"]
    return faults


def _place(name: str, folders: tuple[str, ...], frames: dict[str, str]) -> tuple[str, str] | None:
    """(folder, frame) that a file of the package stands for; None if it stands for none."""
    path = PurePosixPath(name)
    folder = next((part for part in path.parts[:-1] if part in folders), None)
    if folder is None and len(folders) == 1:
        folder = folders[0]  # where there is one kind of file, folders do not matter
    frame = path.stem
    while frame not in frames and "_" in frame:
        frame = frame.rsplit("_", 1)[0]
    return (folder, frame) if folder and frame in frames and path.suffix == ".png" else None


def _content_faults(
    archive: zipfile.ZipFile, name: str, folder: str, image_file: str, num_classes: int
) -> list[str]:
    # A file of the package is unpacked in memory: no larger than 16 bits a pixel, nor any bomb.
    if (size := archive.getinfo(name).file_size) > 2 * pixel_limit():
        return [f"{name} unfolds to {size} bytes, more than an image has"]
    try:
        content = archive.read(name)
    except _UNREADABLE as error:
        return [f"{name} cannot be unpacked: {error}"]
    try:
        with opened(name, content) as png:
            png.load()
            ids, mode, form = np.array(png), png.mode, png.format
    except BadFile as error:
        return [str(error)]
    faults, size = [], ids.shape[1::-1]
    with opened(image_file) as image:
        if size != image.size:
            faults.append(f"{name} has width x height {size}, its image has {image.size}")
    confidence = folder == "confidence"
    expected = "a 16-bit grey PNG" if confidence else "an 8-bit grey or palette PNG"
    if form != "PNG" or mode not in (("I;16", "I") if confidence else ("L", "P")):
        return [*faults, f"{name} is {form} in mode {mode}, expected {expected}"]
    if not confidence:
        allowed = (IGNORE_LABEL,) if folder.endswith("_invalid") else ()
        strangers = sorted(set(np.unique(ids).tolist()) - {*range(num_classes), *allowed})
        if strangers:
            faults.append(f"{name} holds the ids {strangers}, expected 0..{num_classes - 1}")
    return faults
