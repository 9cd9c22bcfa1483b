"""Pictures of the training step for TensorBoard: what goes in, what the teacher says, what is
mixed, what comes out."""

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from detectron2.engine import HookBase

from ..data.labels import colorize


class TrainingPictures(HookBase):
    """Every VIS_PERIOD iterations, the first image of the batch: source, target, pseudo-label,
    mixed, prediction."""

    def __init__(self, cfg) -> None:
        self.period = cfg.VIS_PERIOD
        self.colors = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).stuff_colors

    def after_step(self) -> None:
        if self.trainer.iter % self.period:
            return
        for name, picture in self.pictures().items():
            self.trainer.storage.put_image(name, picture.transpose(2, 0, 1))

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """(H, W, 3) uint8 RGB pictures by name."""
        step, student = self.trainer.last_step, self.trainer.student
        pictures = {
            "source/image": student.denormalize(step.source.images[0]),
            "source/label": colorize(step.source.label[0], self.colors),
        }
        if step.mixed is not None:
            pictures |= {
                "target/image": student.denormalize(step.target.images[0]),
                "target/pseudo_label": colorize(step.target.label[0], self.colors),
                "mixed/image": student.denormalize(step.mixed.images[0]),
                "mixed/label": colorize(step.mixed.label[0], self.colors),
            }
        for name, outputs in step.outputs.items():
            logits = F.interpolate(
                outputs.logits[:1].float(), size=step.source.label.shape[-2:], mode="bilinear"
            )
            pictures[f"{name}/prediction"] = colorize(logits[0].argmax(0), self.colors)
        return pictures
