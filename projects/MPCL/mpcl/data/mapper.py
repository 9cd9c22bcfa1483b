"""From a data set record and a draw to the image (and label) that the networks see.

The transforms and their order are DAFormer's: decode, resize, crop, flip, (colour), pad. The
segmentor normalises.

Everything random comes from a generator seeded by the draw. Boxes are tried on the label alone, and
only the accepted one is cut from the image.
"""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..utils.ignore_label import IGNORE_LABEL
from .decoding import Size, check_pair, read_image
from .labels import Color, LabelMap, check_label, read_label
from .resizing import keep_aspect_size, resize
from .sampler import NO_CLASS, Draw

_TRIES = 11  # boxes drawn for the category rule, and crops for the rare class; the last one stands

Record = dict[str, Any]
Window = tuple[slice, slice]


def _random_box(size: Size, crop_size: Size, rng: np.random.Generator) -> Window:
    """An evenly drawn crop; it ends at the border where the image is smaller than the crop."""
    top, left = (int(rng.integers(max(n - c, 0) + 1)) for n, c in zip(size, crop_size))
    return slice(top, top + crop_size[0]), slice(left, left + crop_size[1])


def _pad(array: np.ndarray, crop_size: Size, value: tuple[int, ...]) -> np.ndarray:
    """Fills up to the crop size, below and to the right."""
    below, right = (c - n for n, c in zip(array.shape, crop_size))
    if not below and not right:
        return array
    return cv2.copyMakeBorder(array, 0, below, 0, right, cv2.BORDER_CONSTANT, value=value)


def _result(record: Record, native: np.ndarray, image: np.ndarray) -> Record:
    """What all mappers return; ``image`` turns from (h, w, 3) BGR into a (3, h, w) RGB tensor."""
    return {
        "image": torch.from_numpy(np.stack(cv2.split(image)[::-1])),
        "file_name": record["file_name"],
        "height": native.shape[0],
        "width": native.shape[1],
    }


def _class_counts(label: np.ndarray) -> np.ndarray:
    """(256,) pixels of each value; OpenCV's histogram spares bincount's copy to int64."""
    return cv2.calcHist([label], [0], None, [256], [0, 256]).ravel().astype(np.int64)


def _is_mixed(counts: np.ndarray, max_area: float) -> bool:
    """No class on ``max_area`` or more of the pixels with a label; hence more than one class."""
    counts = np.delete(counts, IGNORE_LABEL)
    return bool(counts.max() < max_area * counts.sum())


def _photometric_distortion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random brightness, contrast, saturation and hue of a BGR image, as SSD and mmseg do."""
    from detectron2.projects.point_rend import ColorAugSSDTransform

    state = random.getstate()  # the transform draws from the global generator: lend it ours
    random.seed(int(rng.integers(2**31)))
    try:
        return ColorAugSSDTransform("BGR").apply_image(image)
    finally:
        random.setstate(state)


def _crop_settings(cfg: CfgNode) -> dict[str, Any]:
    """What source and target mapper both read from the configuration."""
    return {
        "crop_size": tuple(cfg.INPUT.CROP.SIZE),
        "flip": cfg.INPUT.RANDOM_FLIP == "horizontal",
        "pad_color": tuple(round(mean) for mean in cfg.MODEL.PIXEL_MEAN),
    }


def _described(names: Iterable[str], key: str) -> dict[str, Any]:
    """What the metadata of sets holds under a key, by the names of those that have it."""
    found = {name: MetadataCatalog.get(name).get(key) for name in names}
    return {name: value for name, value in found.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class _CropMapper:
    """What source and target mapper share."""

    size: Size | None  # bounding box of the resized image, see keep_aspect_size
    crop_size: Size  # (h, w) of the result; smaller images are padded below and to the right
    flip: bool  # whether half of the images are mirrored
    pad_color: tuple[int, int, int]  # RGB: the mean colour, about 0 once normalised


@dataclass(frozen=True, kw_only=True)
class SourceMapper(_CropMapper):
    """Labelled record and draw -> random crop of image and label.

    A crop is redrawn, up to 10 times and then taken untested, until it shows more than one class
    and none of them on ``single_category_max_area`` or more of its labelled pixels. Around this,
    the whole is repeated up to 10 times until the class that the image was drawn for covers more
    than ``min_crop_fraction`` of the crop.

    Source: DAFormer (arXiv:2111.14887), Sec. 3.3, and its code. Differs from it in that threshold,
    here a fraction of the crop, so that it fits every size.
    """

    single_category_max_area: float  # in (0, 1]; 1 accepts every crop
    min_crop_fraction: float  # in [0, 1)
    # Random brightness, contrast, saturation and hue, for training without adaptation:
    # self-training distorts the mixed images later.
    photometric_distortion: bool
    # Raw id -> class index, by the name of the data set; label files of others hold class indices.
    label_maps: Mapping[str, LabelMap]
    num_classes: int = IGNORE_LABEL  # other indices than [0, num_classes) and 255 are refused

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "SourceMapper":
        return cls(
            size=tuple(cfg.INPUT.SOURCE_SIZE),
            label_maps=_described(cfg.DATASETS.TRAIN, "label_map"),
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            single_category_max_area=cfg.INPUT.CROP.SINGLE_CATEGORY_MAX_AREA,
            min_crop_fraction=cfg.DATALOADER.RARE_CLASS.MIN_CROP_FRACTION,
            photometric_distortion=cfg.INPUT.COLOR_AUG_SSD,
            **_crop_settings(cfg),
        )

    def __call__(self, record: Record, draw: Draw) -> Record:
        """Reads, crops and augments an image.

        Args:
            record: its ``dataset`` is the name of its data set, where labels are mapped.
            draw: its seed decides on everything random.
        Returns: ``image`` (3, h, w) uint8 RGB and ``sem_seg`` (h, w) uint8 of the crop size;
            ``file_name``; ``height`` and ``width`` of the file.
        Raises: BadFile: a file is missing or cannot be decoded, image and label differ in size, or
            the label holds an unknown id.
        """
        rng = np.random.default_rng(draw.seed)
        image, label = self._read(record)
        size = keep_aspect_size(label.shape, self.size)
        label = resize(label, size, nearest=True)
        box = self._accepted_box(label, draw.rare_class, rng)
        crop, label = resize(image, size)[box], label[box]
        if self.flip and rng.random() < 0.5:
            crop, label = cv2.flip(crop, 1), cv2.flip(label, 1)
        if self.photometric_distortion:
            crop = _photometric_distortion(crop, rng)
        label = np.ascontiguousarray(_pad(label, self.crop_size, (IGNORE_LABEL,)))
        result = _result(record, image, _pad(crop, self.crop_size, self.pad_color[::-1]))
        return {**result, "sem_seg": torch.from_numpy(label)}

    def _read(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        image_file, label_file = record["file_name"], record.get("sem_seg_file_name")
        if label_file is None:
            raise ValueError(
                f"the source record of {image_file} names no label file: put labelled data sets "
                "into DATASETS.TRAIN"
            )
        image = read_image(image_file)
        label = read_label(label_file, self.label_maps.get(record.get("dataset", "")))
        check_pair(image_file, label_file, image.shape[:2], label.shape)
        check_label(label_file, label, self.num_classes)
        return image, label

    def _mixed_box(self, label: np.ndarray, rng: np.random.Generator) -> Window:
        """A box without a dominant class, as far as a few tries find one."""
        for _ in range(_TRIES):
            box = _random_box(label.shape, self.crop_size, rng)
            if self.single_category_max_area >= 1 or _is_mixed(
                _class_counts(label[box]), self.single_category_max_area
            ):
                break
        return box

    def _accepted_box(self, label: np.ndarray, rare_class: int, rng: np.random.Generator) -> Window:
        """A mixed box with enough of the rare class, as far as a few tries find one."""
        enough = self.min_crop_fraction * self.crop_size[0] * self.crop_size[1]
        for _ in range(_TRIES):
            box = self._mixed_box(label, rng)
            if rare_class == NO_CLASS or _class_counts(label[box])[rare_class] > enough:
                break
        return box


@dataclass(frozen=True, kw_only=True)
class TargetMapper(_CropMapper):
    """Unlabelled record and draw -> random crop of the image. Nothing in it can open a label."""

    # Where pseudo-labels are not to be trusted: shares of the image at its top, bottom, left and
    # right, and of the rows of the crop at its top and bottom.
    margins: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)
    crop_margins: tuple[float, float] = (0.0, 0.0)
    # RGB of pixels that show nothing, by the name of the data set.
    nodata: Mapping[str, Color] = field(default_factory=dict)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "TargetMapper":
        st = cfg.SELF_TRAINING
        return cls(
            size=tuple(cfg.INPUT.TARGET_SIZE),
            margins=tuple(st.IGNORE_MARGINS),
            crop_margins=(st.IGNORE_TOP, st.IGNORE_BOTTOM),
            nodata=_described(cfg.DATASETS.TRAIN_TARGET, "nodata"),
            **_crop_settings(cfg),
        )

    def __call__(self, record: Record, draw: Draw) -> Record:
        """As :meth:`SourceMapper.__call__`, without ``sem_seg``; ``shown`` (h, w) bool is False
        where there is no data and in the padding, ``valid`` there and in the margins.

        Raises:
            ValueError: the record names a label file.
            BadFile: the image or its mask cannot be read, or they differ in size.
        """
        rng = np.random.default_rng(draw.seed)
        if "sem_seg_file_name" in record:
            raise ValueError(
                f"the target record of {record['file_name']} names a label file; adaptation must "
                "not see target labels: put an image-only data set into DATASETS.TRAIN_TARGET"
            )
        image = read_image(record["file_name"])
        size = keep_aspect_size(image.shape[:2], self.size)
        box = _random_box(size, self.crop_size, rng)
        crop = resize(image, size)[box]
        flip = self.flip and rng.random() < 0.5
        if flip:
            crop = cv2.flip(crop, 1)
        result = _result(record, image, _pad(crop, self.crop_size, self.pad_color[::-1]))
        shown = np.ones(size, np.uint8)
        for empty in self._empty(record, image):
            # Bilinear as the image: a pixel into which one without data is mixed shows neither.
            shown &= resize(empty, size) == 0
        maps = [shown[box], (shown & beyond_margins(size, self.margins))[box]]
        shown, valid = (
            _pad(cv2.flip(one, 1) if flip else one, self.crop_size, (0,)).astype(bool)
            for one in maps
        )
        valid &= beyond_margins(self.crop_size, (*self.crop_margins, 0.0, 0.0)) > 0
        return {**result, "shown": torch.from_numpy(shown), "valid": torch.from_numpy(valid)}

    def _empty(self, record: Record, image: np.ndarray) -> Iterator[np.ndarray]:
        """(H, W) uint8, not 0 where the image shows nothing, by its colour and by its mask."""
        if color := self.nodata.get(record.get("dataset", "")):
            yield cv2.inRange(image, color[::-1], color[::-1])
        if mask_file := record.get("valid_file_name"):
            mask = read_image(mask_file)
            check_pair(record["file_name"], mask_file, image.shape[:2], mask.shape[:2])
            yield cv2.inRange(mask, (0, 0, 0), (0, 0, 0))


def beyond_margins(size: Size, margins: tuple[float, float, float, float]) -> np.ndarray:
    """(h, w) uint8, 0 in the margins and 1 elsewhere. Margins are shares of the height at the top
    and the bottom, and of the width at the left and the right, rounded to whole rows and columns.
    """
    (height, width), (top, bottom, left, right) = size, margins
    inside = np.zeros(size, np.uint8)
    rows = slice(round(top * height), height - round(bottom * height))
    inside[rows, round(left * width) : width - round(right * width)] = 1
    return inside


@dataclass(frozen=True, kw_only=True)
class TestMapper:
    """Record -> the whole image at the size that the target is trained at (at its own size where
    test-time augmentation resizes it), and its label as the file has it: the prediction is
    evaluated at the ``height`` and ``width`` of the file.
    """

    __test__ = False  # the name starts with Test, but it is none

    size: Size | None  # bounding box of the resized image, see keep_aspect_size
    label_map: LabelMap | None = None  # where label files do not hold class indices

    @classmethod
    def from_config(cls, cfg: CfgNode, dataset: str = "") -> "TestMapper":
        """For the images of a data set; without one, for images that have no label."""
        label_map = MetadataCatalog.get(dataset).get("label_map") if dataset else None
        size = None if cfg.TEST.AUG.ENABLED else tuple(cfg.INPUT.TARGET_SIZE)
        return cls(size=size, label_map=label_map)

    def __call__(self, record: Record) -> Record:
        """Reads and resizes an image.

        Returns: ``image`` (3, h, w) uint8 RGB; ``file_name``; ``height`` and ``width`` of the file;
            ``label`` (H, W) uint8 class indices, where the record names a label file.
        Raises: BadFile: the image or the label cannot be read.
        """
        result = self.of_pixels(read_image(record["file_name"]), record["file_name"])
        if "sem_seg_file_name" in record:
            result["label"] = read_label(record["sem_seg_file_name"], self.label_map)
        return result

    def of_pixels(self, image: np.ndarray, file_name: str = "") -> Record:
        """The same for an image in memory, (H, W, 3) uint8 in OpenCV's BGR order."""
        return _result({"file_name": file_name}, image, self.resize(image))

    def size_of(self, size: Size) -> Size:
        """(h, w) that an image of (height, width) is resized to."""
        return keep_aspect_size(size, self.size)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) -> (h, w, 3), as the network sees it."""
        return resize(image, self.size_of(image.shape[:2]))
