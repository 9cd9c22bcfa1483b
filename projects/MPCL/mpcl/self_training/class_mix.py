"""ClassMix: half of the classes of a source image are pasted onto a target image.

Legend: B images, C classes, (H, W) pixels.
"""

import torch
from torch import Tensor

from ..structures import View
from ..utils.ignore_label import IGNORE_LABEL


@torch.no_grad()
def sample_class_mask(label: Tensor, num_classes: int) -> Tensor:
    """Draws which source pixels are pasted: all pixels of a random half of the classes.

    Candidates are the n labels that occur anywhere in the batch, the ignore label being one of
    them. Each image draws ceil(n / 2) of them, uniformly and without replacement; as some may not
    occur in it, a mask can be empty or full. The host never waits for the device.

    Source: Olsson et al., arXiv:2007.07936; batch-wide candidates as in DACS, arXiv:2007.08702, and
    DAFormer, arXiv:2111.14887.

    Args:
        label: (B, H, W) int64 source labels in [0, C) or IGNORE_LABEL. Other values are the
            caller's error, and not looked for.
        num_classes: C.
    Returns: (B, H, W) bool: True where the source pixel is pasted.
    Raises: ValueError: ``label`` has not three dimensions.
    """
    if label.dim() != 3:
        raise ValueError(f"label must be (B, H, W), got {tuple(label.shape)}")
    slot = torch.where(label == IGNORE_LABEL, num_classes, label).flatten(1)
    present = torch.zeros(num_classes + 1, dtype=torch.bool, device=label.device)
    present.scatter_(0, slot.flatten(), True)
    key = torch.rand(len(label), num_classes + 1, device=label.device)
    # Absent classes sort behind all others, so a rank below ceil(n/2) is a draw without replacement
    # from the n present.
    key.masked_fill_(~present, torch.inf)
    rank = key.argsort(dim=1).argsort(dim=1)
    chosen = rank < (present.sum() + 1) // 2
    return chosen.gather(1, slot).view(label.shape)


def class_mix(mask: Tensor, source: View, target: View) -> View:
    """Source where the mask is True, target elsewhere: images, labels, weights and all.

    Args:
        mask: (B, H, W) bool of :func:`sample_class_mask`.
        source, target: of the same shape; neither is changed.
    """
    return source.join(
        target, lambda s, t: torch.where(mask if s.dim() == 3 else mask[:, None], s, t)
    )
