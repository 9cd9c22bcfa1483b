"""Pictures of the training step for TensorBoard: what goes in, what the teacher says, what is
mixed, what comes out."""

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.engine import HookBase

from ..data.sets.classes import classes_of
from ..utils.pictures import colorize, fit, grid, with_legend

_WIDTH = 256  # of each picture of the strip


class TrainingPictures(HookBase):
    """Every VIS_PERIOD iterations and in the last one, the first image of the batch as a strip with
    captions: source, target, pseudo-label, mixed, predictions."""

    def __init__(self, cfg) -> None:
        self.period = cfg.VIS_PERIOD
        self.classes = classes_of(cfg)

    def after_step(self) -> None:
        last = self.trainer.iter + 1 == self.trainer.max_iter
        if self.trainer.iter % self.period and not last:
            return
        pictures = self.pictures()
        strip = grid([[fit(p, _WIDTH, nearest=True) for p in pictures.values()]], list(pictures))
        named = with_legend(strip, self.classes.stuff_classes, self.classes.stuff_colors)
        self.trainer.storage.put_image("training step", np.asarray(named).transpose(2, 0, 1))

    @torch.no_grad()
    def pictures(self) -> dict[str, np.ndarray]:
        """(H, W, 3) uint8 RGB pictures by caption."""
        step, student = self.trainer.last_step, self.trainer.student
        colors = self.classes.stuff_colors
        pictures = {
            "source": student.denormalize(step.source.images[0]),
            "source label": colorize(step.source.label[0], colors),
        }
        if step.mixed is not None:
            pictures |= {
                "target": student.denormalize(step.target.images[0]),
                "pseudo-label": colorize(step.target.label[0], colors),
                "mixed": student.denormalize(step.mixed.images[0]),
                "mixed label": colorize(step.mixed.label[0], colors),
            }
        for name, outputs in step.outputs.items():
            logits = F.interpolate(
                outputs.logits[:1].float(), size=step.source.label.shape[-2:], mode="bilinear"
            )
            pictures[f"{name} prediction"] = colorize(logits[0].argmax(0), colors)
        return pictures
