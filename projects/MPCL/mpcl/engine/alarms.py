"""Notices when self-training collapses: the teacher calls everything one class, or trusts nothing.

Legend: B images, C classes, (H, W) pixels.
"""

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

ENTROPY = "pseudo_label/class_entropy"
CONFIDENT = "pseudo_label/confident_fraction"
_STRIDE = 4  # pixels between two that are counted: classes are larger than that


@torch.no_grad()
def class_entropy(label: Tensor, num_classes: int) -> Tensor:
    """How evenly a batch's labels spread over the classes: 0 = all one class, 1 = all alike.

    Args:
        label: (B, H, W) int64; values outside [0, C) take no part. Every fourth row and column is
            counted.
        num_classes: C.
    Returns: scalar on the label's device: entropy of the shares of the classes over ln C; NaN where
        no pixel takes part, and 1 if C = 1.
    """
    pixels = label[..., ::_STRIDE, ::_STRIDE].flatten()
    classes = torch.arange(num_classes, device=label.device)
    count = (pixels.unsqueeze(1) == classes).sum(0).float()
    share = count / count.sum()
    if num_classes == 1:
        return share.sum()
    return torch.special.entr(share).sum() / math.log(num_classes)


class CollapseAlarm:
    """Warns when pseudo-labels fall below a floor, and says when they are back.

    Args:
        floors: of the means of :data:`ENTROPY` and :data:`CONFIDENT` between two log lines; 0 =
            never warn.
        after: iterations at the start that are not judged, while the teacher learns.
    """

    def __init__(self, floors: Mapping[str, float], after: int) -> None:
        self.floors, self.after = floors, after
        self.below: set[str] = set()

    @classmethod
    def from_config(cls, cfg) -> "CollapseAlarm":
        collapse = cfg.SELF_TRAINING.COLLAPSE
        floors = {ENTROPY: collapse.MIN_ENTROPY, CONFIDENT: collapse.MIN_CONFIDENT}
        return cls(floors, collapse.AFTER)

    def __call__(self, iteration: int, values: Mapping[str, float]) -> None:
        """Judges the means of a log line; those that are absent are not judged."""
        if iteration < self.after:
            return
        for name in self.floors.keys() & values.keys():
            value, floor = values[name], self.floors[name]
            if value < floor and name not in self.below:
                self.below.add(name)
                logger.warning(
                    f"Iteration {iteration}: {name} fell to {value:.3g}, below {floor:g}: "
                    f"self-training may have collapsed{_ADVICE[name]}"
                )
            elif value >= floor and name in self.below:
                self.below.remove(name)
                logger.info(f"Iteration {iteration}: {name} is back at {value:.3g}")


_ADVICE = {
    ENTROPY: " onto few classes; look at 'training step' in TensorBoard. A smaller "
    "SOLVER.BASE_LR, rare-class sampling or the feature distance help "
    "(SELF_TRAINING.COLLAPSE.MIN_ENTROPY is this floor)",
    CONFIDENT: ": the teacher trusts almost no pixel, so the target teaches nothing; a lower "
    "SELF_TRAINING.CONFIDENCE_THRESHOLD helps (SELF_TRAINING.COLLAPSE.MIN_CONFIDENT is this "
    "floor)",
}
