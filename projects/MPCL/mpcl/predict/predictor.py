"""From images to predictions with a trained network, as a library: :class:`Predictor`.

Legend: C classes, (H, W) an image's own size.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..data.decoding import check_mode, read_image, to_bgr
from ..data.mapper import TestMapper
from .loading import Source, load_networks

AnyImage = np.ndarray | Image.Image | str | os.PathLike[str]


class Labels(NamedTuple):
    """The prediction of an image."""

    ids: np.ndarray  # (H, W) uint8 train ids
    confidence: np.ndarray | None  # (H, W) float32 probability of that class


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
    ) -> None:
        """
        Args:
            source, weights, opts, student: see :func:`load_networks`.
            channel_order: of arrays, ``"RGB"`` or ``"BGR"``.
            batch_size: images in one forward, at most.

        Raises:
            ValueError: ``channel_order`` or ``batch_size`` is none of these, or prototypes are to
                predict that were never started; and as :func:`load_networks`.
        """
        if channel_order not in ("RGB", "BGR"):
            raise ValueError(f"channel_order is {channel_order!r}; expected RGB or BGR")
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        networks = load_networks(source, weights, opts=opts, student=student)
        self.cfg, self.metadata = networks.cfg, networks.metadata
        self.model, self.role = networks.network, networks.role
        self.channel_order, self.batch_size = channel_order, batch_size
        self._mapper = TestMapper.from_config(self.cfg)
        # What turns scores into probabilities: (10) compares similarities at this temperature.
        by_prototypes = self.cfg.TEST.OUTPUT == "prototypes"
        self._temperature = self.cfg.PROTOTYPES.TEMPERATURE if by_prototypes else 1.0

    def __call__(self, images: AnyImage | Sequence[AnyImage]) -> Any:
        """Logits at the images' own sizes.

        Args:
            images: one image or a list or tuple of them: an array (H, W, 3) uint8, a PIL image, or
                the path of a file.

        Returns: ``{"sem_seg": (C, H, W) float32}``; a list of them for a list.
        Raises: ValueError: an array is of another shape or type, or a file cannot be read.
        """
        if not isinstance(images, list | tuple):
            return {"sem_seg": next(self._logits([images]))}
        return [{"sem_seg": logits} for logits in self._logits(images)]

    def labels(self, images: AnyImage | Sequence[AnyImage], *, confidence: bool = False) -> Any:
        """The most probable classes at the images' own sizes.

        Args:
            images: as of :meth:`__call__`.
            confidence: also give their probabilities (of prototypes: softmax of the similarities
                at PROTOTYPES.TEMPERATURE).

        Returns: :class:`Labels`, on the CPU; a list of them for a list.
        """
        if not isinstance(images, list | tuple):
            return self.labels([images], confidence=confidence)[0]
        return [self._labels(logits, confidence) for logits in self._logits(images)]

    def _labels(self, logits: Tensor, confidence: bool) -> Labels:
        if not confidence:
            return Labels(_to_array(logits.argmax(0)), None)
        largest, ids = (logits / self._temperature).softmax(0).max(0)
        return Labels(_to_array(ids), largest.cpu().numpy())

    def _logits(self, images: Sequence[AnyImage]) -> Iterator[Tensor]:
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            records = [self._mapper.of_pixels(self._to_bgr(image)) for image in batch]
            with torch.no_grad():
                results = self.model(records)
            yield from (result["sem_seg"] for result in results)

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
    """(H, W) uint8 class ids of one dataset dict, in evaluation mode; the mode is restored."""
    training = network.training
    network.eval()
    logits = network([record])[0]["sem_seg"]
    network.train(training)
    return _to_array(logits.argmax(0))


def _to_array(ids: Tensor) -> np.ndarray:
    return ids.to(torch.uint8).cpu().numpy()
