"""What is predicted, and where the predictions go: images, videos and cameras in, pictures out."""

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from detectron2.data import Metadata

from ..data.decoding import BadFile, opened
from ..data.files import IMAGE_SUFFIXES, list_files
from ..data.labels import colorize
from ..data.sets.driving_classes import CITYSCAPES_CLASSES, CITYSCAPES_IDS
from ..utils.atomic_write import write_atomically

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
KINDS = {"overlay": ".jpg", "train_ids": ".png", "label_ids": ".png", "confidence": ".png"}
"""What can be written, each into a folder of its own, and how its files end."""

_DEFAULT_FPS = 25.0  # of cameras that name none
_TRAIN_TO_LABEL_ID = np.zeros(256, np.uint8)  # 0 = unlabeled
for _label_id, _train_id in CITYSCAPES_IDS.items():
    if 0 <= _train_id < len(CITYSCAPES_CLASSES):
        _TRAIN_TO_LABEL_ID[_train_id] = _label_id


class ImageFile(NamedTuple):
    """An image to predict, and the name of its outputs: a relative path without suffix."""

    path: str
    name: str


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
    return sorted(dict.fromkeys(found), key=_size)


def _images_of(text: str) -> list[ImageFile]:
    path = Path(text)
    if path.is_dir():
        return [ImageFile(file, name) for name, file in list_files(path, IMAGE_SUFFIXES).items()]
    if path.is_file():
        if path.suffix.lower() not in IMAGE_SUFFIXES:
            known = ", ".join((*IMAGE_SUFFIXES, *VIDEO_SUFFIXES))
            raise ValueError(f"{text} is neither an image nor a video by its name; known: {known}")
        return [ImageFile(text, path.stem)]
    if not glob.has_magic(text):
        raise FileNotFoundError(f"there is no image, folder or video at {text}")
    fixed = Path(text)
    while glob.has_magic(str(fixed)):
        fixed = fixed.parent
    matches = sorted(m for m in glob.glob(text, recursive=True) if Path(m).is_file())
    images = [m for m in matches if m.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        raise FileNotFoundError(f"no image matches {text}")
    return [
        ImageFile(m, Path(os.path.relpath(m, fixed)).with_suffix("").as_posix()) for m in images
    ]


def _size(image: ImageFile) -> tuple[int, int]:
    """(width, height) by the header alone; (0, 0) of a file that cannot be read, which is refused
    when it is predicted."""
    try:
        with opened(image.path) as header:
            return header.size
    except BadFile:
        return (0, 0)


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


def default_kinds(metadata: Metadata) -> list[str]:
    """Overlays and train ids; ids of Cityscapes' label files where the classes are Cityscapes'."""
    cityscapes = list(metadata.stuff_classes) == CITYSCAPES_CLASSES
    return ["overlay", "train_ids", *(["label_ids"] if cityscapes else [])]


class PredictionWriter:
    """Writes predictions below a folder, one sub-folder a kind; no file is ever half-written.

    - ``overlay``: the image, and beside it the classes' colours over it;
    - ``train_ids``: 8-bit grey PNGs with the network's class indices;
    - ``label_ids``: the same with the ids of Cityscapes' label files;
    - ``confidence``: 8-bit grey PNGs, 255 = probability 1.

    Attributes:
        written: number of files by kind.
    """

    def __init__(
        self, folder: Path, kinds: Sequence[str], metadata: Metadata, *, opacity: float = 0.6
    ) -> None:
        """
        Args:
            kinds: some of :data:`KINDS`.
            opacity: of the colours over the image, 0 to 1.

        Raises:
            ValueError: an unknown kind; ``label_ids`` of other classes than Cityscapes'; an opacity
                out of range.
        """
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"unknown kinds {sorted(unknown)}; known: {', '.join(KINDS)}")
        if "label_ids" in kinds and "label_ids" not in default_kinds(metadata):
            raise ValueError("label_ids are Cityscapes', but the model has other classes")
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity is {opacity}; expected 0 to 1")
        self.folder, self.kinds, self.opacity = folder, tuple(dict.fromkeys(kinds)), opacity
        self.colors = metadata.stuff_colors
        self.written: Counter[str] = Counter()

    def path(self, kind: str, name: str) -> Path:
        return self.folder / kind / f"{name}{KINDS[kind]}"

    def video_path(self, name: str) -> Path:
        return self.folder / "overlay" / f"{name}.mp4"

    def existing(self, name: str) -> list[Path]:
        """The outputs of an image that are there already."""
        return [path for kind in self.kinds if (path := self.path(kind, name)).exists()]

    def existing_of_stream(self, name: str) -> list[Path]:
        """The outputs of a video or camera that are there already."""
        paths = [
            self.video_path(name) if kind == "overlay" else self.folder / kind / name
            for kind in self.kinds
        ]
        return [path for path in paths if path.exists()]

    def write(
        self, name: str, image: np.ndarray, ids: np.ndarray, confidence: np.ndarray | None
    ) -> None:
        """
        Args:
            name: of the outputs, without suffix; may have sub-folders.
            image: (H, W, 3) uint8 BGR.
            ids: (H, W) uint8.
            confidence: (H, W) in [0, 1]; needed for this kind.
        """
        for kind in self.kinds:
            self._save(kind, name, self._picture(kind, image, ids, confidence))

    def write_frame(
        self,
        video: "OverlayVideo | None",
        name: str,
        image: np.ndarray,
        ids: np.ndarray,
        confidence: np.ndarray | None,
    ) -> None:
        """Writes what :meth:`write` does, but the overlay as a frame of the video."""
        for kind in self.kinds:
            picture = self._picture(kind, image, ids, confidence)
            if kind == "overlay" and video is not None:
                video.add(picture)
            else:
                self._save(kind, name, picture)

    def _picture(
        self, kind: str, image: np.ndarray, ids: np.ndarray, confidence: np.ndarray | None
    ) -> np.ndarray:
        if kind == "overlay":
            colors = colorize(ids, self.colors)[..., ::-1]
            blend = cv2.addWeighted(
                image, 1 - self.opacity, np.ascontiguousarray(colors), self.opacity, 0
            )
            return np.hstack([image, blend])
        if kind == "confidence":
            assert confidence is not None
            return np.round(255 * confidence).astype(np.uint8)
        return cv2.LUT(ids, _TRAIN_TO_LABEL_ID) if kind == "label_ids" else ids

    def _save(self, kind: str, name: str, picture: np.ndarray) -> None:
        path = self.path(kind, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        encoded, content = cv2.imencode(path.suffix, picture)
        if not encoded:
            raise ValueError(f"{path} cannot be encoded: {picture.shape[1]} x {picture.shape[0]}")
        write_atomically(path, content.tobytes())
        self.written[kind] += 1


class OverlayVideo:
    """An MP4 file of overlays; it gets its name when it is closed, complete or interrupted."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self._fps = path, fps
        self._partial = path.with_name(f"{path.stem}.partial.mp4")
        self._writer: cv2.VideoWriter | None = None

    def add(self, picture: np.ndarray) -> None:
        """Adds a frame.

        Raises: ValueError: this OpenCV has no encoder.
        """
        height, width = (side - side % 2 for side in picture.shape[:2])  # encoders want even sides
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self._partial), codec, self._fps, (width, height))
            if not self._writer.isOpened():
                raise ValueError(f"{self.path} cannot be written: this OpenCV encodes no MP4 video")
        self._writer.write(np.ascontiguousarray(picture[:height, :width]))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.release()
            os.replace(self._partial, self.path)
