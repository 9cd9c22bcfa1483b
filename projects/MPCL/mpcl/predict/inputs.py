"""What is predicted: images in files, folders and globs, and the frames of videos and cameras."""

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from ..data.decoding import BadFile, opened
from ..data.files import IMAGE_SUFFIXES, list_files
from .geotiff import NOWHERE, GeoTags, georeference

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")

_DEFAULT_FPS = 25.0  # of cameras that name none


class ImageFile(NamedTuple):
    """An image to predict.

    Attributes:
        name: of its outputs: a relative path without suffix.
        size: (width, height) by the header alone; (0, 0) of a file that cannot be read, which is
            refused when it is predicted.
        georeference: of a GeoTIFF.
    """

    path: str
    name: str
    size: tuple[int, int] = (0, 0)
    georeference: GeoTags = NOWHERE


def find_images(inputs: Sequence[str]) -> list[ImageFile]:
    """Image files that are named, in folders at any depth, or matched by globs (``**`` too).

    Images of one size come together, so that they can pass the network together.

    Raises:
        FileNotFoundError: nothing is there, or matches.
        ValueError: a named file is no image by its suffix, or two would be written to one name.
    """
    found = [image for text in inputs for image in _images_of(text)]
    places: dict[str, str] = {}
    for path, name in found:
        if places.setdefault(name.lower(), path) != path:
            raise ValueError(
                f"{places[name.lower()]} and {path} would both be written as {name}; predict them "
                "into two folders"
            )
    images = [_with_header(path, name) for path, name in dict.fromkeys(found)]
    return sorted(images, key=lambda image: image.size)


def _images_of(text: str) -> list[tuple[str, str]]:
    """(path, name) of each."""
    path = Path(text)
    if path.is_dir():
        return [(file, name) for name, file in list_files(path, IMAGE_SUFFIXES).items()]
    archives = [p for p in (path, *path.parents) if p.suffix.lower() == ".zip" and p.is_file()]
    if archives:
        raise ValueError(
            f"{archives[0]} is an archive, which is read as a data set alone: unpack it, and name "
            "the folder"
        )
    if path.is_file():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            known = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
            raise ValueError(f"{text} is neither an image nor a video by its name; known: {known}")
        return [(text, path.stem)]
    if not glob.has_magic(text):
        raise FileNotFoundError(f"there is no image, folder or video at {text}")
    fixed = Path(text)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    matches = sorted(m for m in glob.glob(text, recursive=True) if Path(m).is_file())
    images = [m for m in matches if m.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        raise FileNotFoundError(f"no image matches {text}")
    return [(m, Path(os.path.relpath(m, fixed)).with_suffix("").as_posix()) for m in images]


def _with_header(path: str, name: str) -> ImageFile:
    try:
        with opened(path) as header:
            return ImageFile(path, name, header.size, georeference(path, header))
    except BadFile:
        return ImageFile(path, name)


class Stream:
    """Frames of a video file, or of a camera by its number, as (H, W, 3) uint8 BGR.

    Attributes:
        name: of its outputs.
        fps: frames a second.
        num_frames: None where it is not known.
    """

    def __init__(self, text: str, max_frames: int | None = None) -> None:
        """
        Raises: ValueError: it cannot be opened.
        """
        self.is_camera = is_camera(text)
        self.name = stream_name(text)
        self._text, self._max_frames = text, max_frames
        self._capture = cv2.VideoCapture(int(text) if self.is_camera else text)
        if not self._capture.isOpened():
            raise ValueError(
                f"{f'camera {text}' if self.is_camera else text} cannot be opened by OpenCV: "
                "expected a readable video or a connected camera"
            )
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) or _DEFAULT_FPS
        frames = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT))
        known = frames if frames > 0 and not self.is_camera else None
        limits = [number for number in (known, max_frames) if number is not None]
        self.num_frames = min(limits) if limits else None

    def fault_of(self, count: int) -> str:
        """What is wrong with a stream that gave so many frames; "" if nothing is. A file's number
        of frames may be an estimate: a second more or less is none."""
        if self.num_frames is None or count >= self.num_frames - self.fps:
            return ""
        return f"{self._text} breaks off: {count} of its {self.num_frames} frames can be read"

    def __iter__(self) -> Iterator[np.ndarray]:
        count = 0
        try:
            while self._max_frames is None or count < self._max_frames:
                read, frame = self._capture.read()
                if not read:
                    break
                count += 1
                yield frame
        finally:
            self._capture.release()
        if count == 0 and self._max_frames != 0:
            raise ValueError(f"{self._text} gave no frame")


def is_camera(text: str) -> bool:
    """Whether the text is a number, and no file has it as its name."""
    return text.isdecimal() and not Path(text).exists()


def is_stream(text: str) -> bool:
    """Whether the text names a camera, or a file with the suffix of a video."""
    return is_camera(text) or (Path(text).is_file() and text.lower().endswith(VIDEO_SUFFIXES))


def stream_name(text: str) -> str:
    """The name that a stream's outputs get."""
    return f"camera_{text}" if is_camera(text) else Path(text).stem
