"""Test-time augmentation: the mean over an image at several sizes and over its mirror images.

Configured as Detectron2's, by TEST.AUG, and with its sizes; Detectron2 has none for semantic
segmentation.

Legend: C classes, (H, W) the image's own size.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import torch
from detectron2.config import CfgNode
from detectron2.data.transforms import ResizeShortestEdge
from torch import Tensor

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class TestTimeAugmentation:
    """Averages probabilities over views of an image.

    Attributes:
        min_sizes: of the shorter side of each view, pixels.
        max_size: of the longer side, pixels: a view that would exceed it is smaller.
        flip: each view is also seen mirrored left to right.
    """

    __test__ = False  # the name starts with Test, but it is none

    min_sizes: tuple[int, ...]
    max_size: int
    flip: bool

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "TestTimeAugmentation | None":
        aug = cfg.TEST.AUG
        if not aug.ENABLED:
            return None
        return cls(min_sizes=tuple(aug.MIN_SIZES), max_size=aug.MAX_SIZE, flip=aug.FLIP)

    def __call__(
        self,
        predict: Callable[[list[Record]], list[dict[str, Tensor]]],
        record: Record,
        temperature: float,
    ) -> Tensor:
        """Scores (C, H, W) whose softmax at the temperature is the mean of the views' softmax.

        Args:
            predict: maps records to scores ``sem_seg`` at their ``height`` and ``width``.
            record: ``image`` (3, h, w) uint8 on the CPU, of which the views are made; ``height``
                and ``width``.
        """
        total, count = None, 0
        for views in self._views(record):
            for mirrored, result in enumerate(predict(views)):
                share = (result["sem_seg"] / temperature).softmax(0)
                share = share.flip(-1) if mirrored else share
                total, count = share if total is None else total.add_(share), count + 1
        return total.div_(count).clamp_(min=torch.finfo(total.dtype).tiny).log_().mul_(temperature)

    def _views(self, record: Record) -> Iterator[list[Record]]:
        """The image at each size, and mirrored."""
        pixels = record["image"].permute(1, 2, 0).contiguous().numpy()
        for side in self.min_sizes:
            size = ResizeShortestEdge.get_output_shape(*pixels.shape[:2], side, self.max_size)
            # Without antialiasing, as images are resized in training.
            resized = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
            image = torch.from_numpy(resized).permute(2, 0, 1)
            images = [image, image.flip(-1)] if self.flip else [image]
            yield [{**record, "image": view} for view in images]
