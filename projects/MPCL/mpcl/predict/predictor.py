"""From images to predictions with a trained network, as a library: :class:`Predictor`.

Legend: C classes, (H, W) an image's own size.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from detectron2.evaluation import inference_context
from PIL import Image
from torch import Tensor, nn

from ..data.decoding import check_mode, read_image, to_bgr
from ..data.mapper import TestMapper
from ..modeling.inference import sliding_window
from .loading import Source, load_networks
from .tiling import Labels, Size, label, label_by_tiles

logger = logging.getLogger(__name__)

AnyImage = np.ndarray | Image.Image | str | os.PathLike[str]


class Predictor:
    """A trained network for images of any size, one or many at once.

    A drop-in for ``detectron2.engine.DefaultPredictor``: called with an image, it returns
    ``{"sem_seg": (C, H, W) logits}`` on the model's device, at the image's own size. Differs from
    it in: **arrays are RGB**, unless ``channel_order="BGR"`` is asked for (DefaultPredictor always
    takes BGR, as ``cv2.imread`` gives); files and PIL images are taken as well, and turned upright
    by their EXIF tag; a list is predicted in batches, images of one size together, and gives a
    list. Images are resized as in the evaluation (INPUT.TARGET_SIZE), and predicted whole or by
    sliding windows as the config says.

        predictor = mpcl.Predictor("output/gta5_to_cityscapes/mic_gauss")
        labels = predictor.labels("street.jpg").ids           # (H, W) train ids
        logits = predictor([image_1, image_2])[1]["sem_seg"]  # (C, H, W)

    Attributes:
        cfg, model, metadata: as of DefaultPredictor; ``metadata`` has ``stuff_classes`` and
            ``stuff_colors``.
        role: ``"teacher"`` or ``"student"``: which network predicts.
    """

    def __init__(
        self,
        source: Source,
        weights: str | os.PathLike[str] = "",
        *,
        opts: Sequence[Any] = (),
        student: bool = False,
        channel_order: str = "RGB",
        batch_size: int = 4,
        tile: int = 4096,
    ) -> None:
        """
        Args:
            source, weights, opts, student: see :func:`load_networks`.
            channel_order: of arrays, ``"RGB"`` or ``"BGR"``.
            batch_size: images in one forward, at most.
            tile: :meth:`labels` predicts images of more pixels than its square by tiles of this
                side (of three windows, TEST.SLIDE.CROP, at least), see :mod:`mpcl.predict.tiling`.
        Raises: ValueError: ``channel_order``, ``batch_size`` or ``tile`` is none of these, or
            prototypes are to predict that were never started; and as :func:`load_networks`.
        """
        if channel_order not in ("RGB", "BGR"):
            raise ValueError(f"channel_order is {channel_order!r}; expected RGB or BGR")
        for name, number in (("batch_size", batch_size), ("tile", tile)):
            if number < 1:
                raise ValueError(f"{name} must be positive, got {number}")
        networks = load_networks(source, weights, opts=opts, student=student)
        self.cfg, self.metadata = networks.cfg, networks.metadata
        self.model, self.role = networks.network, networks.role
        self.channel_order, self.batch_size, self.tile = channel_order, batch_size, tile
        self._mapper = TestMapper.from_config(self.cfg)

    def __call__(self, images: AnyImage | Sequence[AnyImage]) -> Any:
        """Logits at the images' own sizes.

        Args:
            images: one image or a list or tuple of them: an array (H, W, 3) uint8, a PIL image, or
                the path of a file.
        Returns: ``{"sem_seg": (C, H, W) float32}``; a list of them for a list.
        Raises: ValueError: an array is of another shape or type, or a file cannot be read.
        """
        if not isinstance(images, list | tuple):
            return self([images])[0]
        batches = map(self._forward, self._batches(images))
        return [{"sem_seg": logits} for batch in batches for logits in batch]

    def is_large(self, size: Size) -> bool:
        """Whether :meth:`labels` predicts an image of this (height, width) by tiles."""
        height, width = self._mapper.size_of(size)
        return max(size[0] * size[1], height * width) > self.tile**2

    def labels(self, images: AnyImage | Sequence[AnyImage], *, confidence: bool = False) -> Any:
        """The most probable classes at the images' own sizes.

        Args:
            images: as of :meth:`__call__`.
            confidence: also give their probabilities (of prototypes: softmax of the similarities
                at PROTOTYPES.TEMPERATURE).
        Returns: :class:`Labels`, on the CPU; a list of them for a list.
        Raises: ValueError: as :meth:`__call__`; a large image with test-time augmentation; the
            network gives NaN.
        """
        if not isinstance(images, list | tuple):
            return self.labels([images], confidence=confidence)[0]
        found: list[Labels] = []
        temperature = self.model.temperature if confidence else None
        for batch in self._batches(images):
            small = [image for image in batch if not self.is_large(image.shape[:2])]
            logits = iter(self._forward(small))
            found += [
                self._by_tiles(image, temperature)
                if self.is_large(image.shape[:2])
                else label(next(logits), temperature)
                for image in batch
            ]
        return found

    @torch.no_grad()
    def _by_tiles(self, image: np.ndarray, temperature: float | None) -> Labels:
        if self.model.augmentation is not None:
            raise ValueError(
                f"an image of {image.shape[1]} x {image.shape[0]} is predicted by tiles of "
                f"{self.tile}, which test-time augmentation is not; set TEST.AUG.ENABLED False, or "
                "tiles larger than the image"
            )
        slide, shrunk = self.cfg.TEST.SLIDE, self._mapper.resize(image)
        crop, stride = tuple(slide.CROP), tuple(slide.STRIDE)
        size = (image.shape[0], image.shape[1])
        windows = self.model.inference
        several = shrunk.shape[0] * shrunk.shape[1] > self.tile**2
        if several:
            windows = partial(sliding_window, crop=crop, stride=stride, batch_size=slide.BATCH)
            if self.cfg.TEST.INFERENCE != "slide":
                logger.warning(
                    f"An image of {size[1]} x {size[0]} is too large for TEST.INFERENCE whole: it "
                    f"is predicted by windows of {crop[1]} x {crop[0]}, as TEST.SLIDE says"
                )
        native = TestMapper(size=None)

        def logits_of(tile: np.ndarray) -> Tensor:
            return self.model.predict_once([native.of_pixels(tile)], windows)[0]["sem_seg"]

        return label_by_tiles(
            logits_of,
            shrunk,
            size,
            side=self.tile if several else None,
            crop=crop,
            stride=stride,
            temperature=temperature,
        )

    def _batches(self, images: Sequence[AnyImage]) -> Iterator[list[np.ndarray]]:
        for start in range(0, len(images), self.batch_size):
            yield [self._to_bgr(image) for image in images[start : start + self.batch_size]]

    @torch.no_grad()
    def _forward(self, images: Sequence[np.ndarray]) -> list[Tensor]:
        records = [self._mapper.of_pixels(image) for image in images]
        return [result["sem_seg"] for result in self.model(records)] if records else []

    def _to_bgr(self, image: AnyImage) -> np.ndarray:
        if isinstance(image, str | os.PathLike):
            return read_image(os.fspath(image))
        if isinstance(image, Image.Image):
            check_mode(getattr(image, "filename", "") or "the image", image)
            return to_bgr(image)
        if not isinstance(image, np.ndarray):
            raise ValueError(f"image is a {type(image).__name__}; expected an array, PIL or a path")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"image is an array {image.shape} of {image.dtype}; expected (H, W, 3) of uint8"
            )
        return np.ascontiguousarray(image if self.channel_order == "BGR" else image[..., ::-1])


@torch.no_grad()
def predict(network: nn.Module, record: dict[str, Any]) -> np.ndarray:
    """(H, W) uint8 class ids of one dataset dict, in evaluation mode."""
    with inference_context(network):
        return label(network([record])[0]["sem_seg"], None).ids
