"""Where predictions go: pictures of several kinds, each in a folder of its own, and videos."""

import shutil
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from detectron2.data import Metadata

from ..utils.atomic_write import write_atomically
from ..utils.pictures import colorize, legend
from .geotiff import encode_tiff
from .inputs import ImageFile, Stream
from .own_ids import is_cityscapes, own_ids
from .tiling import Labels

KINDS = {"overlay": ".jpg", "train_ids": ".png", "label_ids": ".png", "confidence": ".png"}
"""What can be written, each into a folder of its own, and how its files end."""

_LONGEST = 65500  # pixels to a side of a JPEG, at most
_STRIP = 1024  # rows that are coloured at once


def default_kinds(metadata: Metadata) -> list[str]:
    """Overlays and train ids; ids of Cityscapes' label files where the classes are Cityscapes'."""
    return ["overlay", "train_ids", *(["label_ids"] if is_cityscapes(metadata) else [])]


class PredictionWriter:
    """Writes predictions below a folder, one sub-folder a kind; no file is ever half-written.

    - ``overlay``: the image, and beside it the classes' colours over it; smaller than the image
      where a JPEG could not hold it; ``legend.png`` (:meth:`write_legend`) names the colours;
    - ``train_ids``: 8-bit grey PNGs with the network's class indices;
    - ``label_ids``: the same with the ids, or colours, of the user's label files, see
      :func:`~mpcl.predict.own_ids.own_ids`;
    - ``confidence``: 8-bit grey PNGs, 255 = probability 1.

    All but the overlays become TIFFs with the same georeference where the image is a GeoTIFF.

    Attributes:
        written: number of files by kind.
    """

    def __init__(
        self,
        folder: Path,
        kinds: Sequence[str],
        metadata: Metadata,
        *,
        opacity: float = 0.6,
        keep: bool = False,
    ) -> None:
        """
        Args:
            kinds: some of :data:`KINDS`.
            keep: what is there already stays as it is.
            opacity: of the colours over the image, 0 to 1.
        Raises: ValueError: an unknown kind; ``label_ids`` where a class has none; an opacity out of
            range.
        """
        if unknown := set(kinds) - set(KINDS):
            raise ValueError(f"unknown kinds {sorted(unknown)}; known: {', '.join(KINDS)}")
        if not 0 <= opacity <= 1:
            raise ValueError(f"opacity is {opacity}; expected 0 to 1")
        self.folder, self.kinds, self.opacity = folder, tuple(dict.fromkeys(kinds)), opacity
        self.keep = keep
        self.classes, self.colors = metadata.stuff_classes, metadata.stuff_colors
        self._own_ids = own_ids(metadata) if "label_ids" in kinds else None
        self.written: Counter[str] = Counter()

    def path(self, kind: str, file: ImageFile) -> Path:
        suffix = ".tif" if file.georeference and kind != "overlay" else KINDS[kind]
        return self.folder / kind / f"{file.name}{suffix}"

    def existing(self, image: ImageFile) -> list[Path]:
        """The outputs of an image that are there already."""
        paths = [self.path(kind, image) for kind in self.kinds]
        return [path for path in paths if path.exists()]

    def existing_of_stream(self, name: str) -> list[Path]:
        """The outputs of a video or camera that are there already."""
        paths = [self.path_of_stream(kind, name) for kind in self.kinds]
        return [path for path in paths if path.exists()]

    def path_of_stream(self, kind: str, name: str) -> Path:
        """A video of overlays; the folder of the frames of another kind."""
        return self.folder / kind / (f"{name}.mp4" if kind == "overlay" else name)

    def write(
        self,
        file: ImageFile,
        image: np.ndarray,
        labels: Labels,
        video: "OverlayVideo | None" = None,
    ) -> None:
        """Writes what is asked for, the overlay last.

        Args:
            file: that the image comes from.
            image: (H, W, 3) uint8 BGR.
            labels: with confidences, where they are asked for.
            video: takes the overlay as its next frame, of an image that is one.
        """
        for kind in sorted(self.kinds, key="overlay".__eq__):
            if self.keep and self.path(kind, file).exists():
                continue
            picture = self._picture(kind, image, labels)
            if kind == "overlay" and video is not None:
                video.add(picture)
            else:
                self._save(kind, file, picture)

    def write_legend(self) -> None:
        """Writes what the colours of the overlays mean beside them; that of an earlier call is
        replaced, and no image's overlay, which is a JPEG, can have its name."""
        if "overlay" not in self.kinds:
            return
        path = self.folder / "overlay" / "legend.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        content = BytesIO()
        legend(self.classes, self.colors).save(content, format="PNG")
        write_atomically(path, content.getvalue())

    def _picture(self, kind: str, image: np.ndarray, labels: Labels) -> np.ndarray:
        if kind == "overlay":
            return self._overlay(image, labels.ids)
        if kind == "confidence":
            assert labels.confidence is not None
            return np.round(255 * labels.confidence).astype(np.uint8)
        return labels.ids if kind == "train_ids" else self._own_ids[labels.ids]

    def _overlay(self, image: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """The image and the prediction over it, side by side: (H, 2W, 3) BGR."""
        height, width = ids.shape
        if (scale := _LONGEST / max(height, 2 * width)) < 1:
            size = max(1, int(width * scale)), max(1, int(height * scale))
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
            ids = cv2.resize(ids, size, interpolation=cv2.INTER_NEAREST)
        picture = np.hstack([image, image])
        for top in range(0, len(ids), _STRIP):  # a large image's colours need not be there at once
            rows = slice(top, top + _STRIP)
            colors = np.ascontiguousarray(colorize(ids[rows], self.colors)[..., ::-1])
            picture[rows, ids.shape[1] :] = cv2.addWeighted(
                image[rows], 1 - self.opacity, colors, self.opacity, 0
            )
        return picture

    def _save(self, kind: str, file: ImageFile, picture: np.ndarray) -> None:
        path = self.path(kind, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".tif":
            write_atomically(path, encode_tiff(picture, file.georeference))
        else:
            in_rgb = kind == "label_ids" and picture.ndim == 3
            picture = np.ascontiguousarray(picture[..., ::-1]) if in_rgb else picture
            encoded, content = cv2.imencode(path.suffix, picture)
            if not encoded:
                size = f"{picture.shape[1]} x {picture.shape[0]}"
                raise ValueError(f"{path} cannot be encoded: {size}")
            write_atomically(path, content.tobytes())
        self.written[kind] += 1


class StreamOutputs:
    """The outputs of a stream's frames: they get their names when it is finished. What an interrupt
    leaves behind has ``.partial`` in its name, and the next call writes it anew.

    Attributes:
        count: of the frames so far.
    """

    def __init__(self, writer: PredictionWriter, stream: Stream) -> None:
        self._writer, self._name = writer, stream.name
        self._partial = f"{stream.name}.partial"
        self._video = OverlayVideo(writer.path_of_stream("overlay", self._partial), stream.fps)
        self.count = 0
        for kind in writer.kinds:
            shutil.rmtree(writer.path_of_stream(kind, self._partial), ignore_errors=True)

    def add(self, image: np.ndarray, labels: Labels) -> None:
        """Writes what is asked for of the next frame, see :meth:`PredictionWriter.write`."""
        frame = ImageFile("", f"{self._partial}/{self.count:06d}")
        self._writer.write(frame, image, labels, self._video)
        self.count += 1

    def finish(self) -> None:
        """Gives the outputs their names, in the place of an earlier call's.

        Raises: OSError: the video is not whole.
        """
        self._video.close()
        for kind in self._writer.kinds if self.count else ():
            partial = self._writer.path_of_stream(kind, self._partial)
            final = self._writer.path_of_stream(kind, self._name)
            if self._writer.keep and final.exists():
                partial.unlink() if kind == "overlay" else shutil.rmtree(partial)
                continue
            if kind == "overlay":
                partial.replace(final)
                continue
            final.mkdir(exist_ok=True)
            for old in final.glob("[0-9]*.png"):
                old.unlink()
            for frame in partial.iterdir():
                frame.replace(final / frame.name)
            partial.rmdir()


class OverlayVideo:
    """An MP4 file of overlays."""

    def __init__(self, path: Path, fps: float) -> None:
        self.path, self._fps = path, fps
        self._writer: cv2.VideoWriter | None = None
        self._count = 0

    def add(self, picture: np.ndarray) -> None:
        """Adds a frame.

        Raises: ValueError: this OpenCV has no encoder.
        """
        height, width = (side - side % 2 for side in picture.shape[:2])  # encoders want even sides
        if self._writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            codec = cv2.VideoWriter_fourcc(*"mp4v")
            self._writer = cv2.VideoWriter(str(self.path), codec, self._fps, (width, height))
            if not self._writer.isOpened():
                raise ValueError(f"{self.path} cannot be written: this OpenCV encodes no MP4 video")
        self._writer.write(np.ascontiguousarray(picture[:height, :width]))
        self._count += 1

    def close(self) -> None:
        """
        Raises: OSError: the file does not hold all frames. The encoder itself says nothing where
            the disk is full.
        """
        if self._writer is None:
            return
        self._writer.release()
        held = int(cv2.VideoCapture(str(self.path)).get(cv2.CAP_PROP_FRAME_COUNT))
        if held != self._count:
            raise OSError(
                f"{self.path} holds {held} of {self._count} frames: is the disk full, or did the "
                "size of the frames change?"
            )
