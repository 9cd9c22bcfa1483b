"""Teacher logits -> hard labels, their probability, and one confidence weight a batch.

Legend: B images, C classes, (h, w) logit grid, (H, W) pixels.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.distributed import sum_over_ranks, world_size

SCOPES = ("batch", "image")


@dataclass(frozen=True)
class PseudoLabel:
    """What the teacher says about a batch of target images. No tensor has a gradient.

    Attributes:
        label: (B, H, W) int64 in [0, C): the most probable class. Every pixel has one, however
            unsure.
        probability: (B, H, W) float32 in [1/C, 1]: probability of that class.
        weight: (B, H, W) float32 in [0, 1]: confident share, 0 within the margins.
        confident: (B, H, W) bool: probability reaches the threshold, and the pixel is outside the
            margins.
        confident_fraction: scalar float32 in [0, 1]: share of all pixels of the batch, margins
            included, whose probability reaches the threshold (with ``scope="image"``: mean of the
            images' shares).
    """

    label: Tensor
    probability: Tensor
    weight: Tensor
    confident: Tensor
    confident_fraction: Tensor

    def split(self, parts: int) -> list["PseudoLabel"]:
        """Equal parts of the images; each keeps the share of the whole batch."""
        maps = (self.label, self.probability, self.weight, self.confident)
        return [
            PseudoLabel(label, probability, weight, confident, self.confident_fraction)
            for label, probability, weight, confident in zip(*(m.chunk(parts) for m in maps))
        ]


@torch.no_grad()
def pseudo_label(
    logits: Tensor,
    size: tuple[int, int],
    *,
    threshold: float = 0.968,
    scope: str = "batch",
    ignore_top: float = 0.0,
    ignore_bottom: float = 0.0,
    valid: Tensor | None = None,
) -> PseudoLabel:
    r"""Labels every pixel and weighs all of them by the share of confident ones.

    .. math:: q = \frac{1}{BHW} \sum_{b,i} [\max_c p_{b,i,c} \ge \theta]

    Unsure pixels are kept: the share scales the target's influence as a whole. The logits are
    upsampled before the softmax. Margins (the bonnet and the sky border of rectified images) get
    weight 0, but do count in the share. With several ranks a batch is what all of them hold, so
    that N ranks equal one large batch; all must call.

    Source: MPCL Eq. (16); DAFormer, arXiv:2111.14887 (and DACS, arXiv:2007.08702, before it).

    Args:
        logits: (B, C, h, w) of the teacher, any floating-point type; computed on in float32.
        size: (H, W) of the labels.
        threshold: theta in [0, 1], inclusive.
        scope: "batch": one share for the batch; "image": one for each image.
        ignore_top, ignore_bottom: margins as fractions of the height, rounded to whole rows.
        valid: (B, H, W) bool, False where the weight shall be 0 as in a margin; None = nowhere.

    Raises:
        ValueError: ``logits`` has not four dimensions, ``threshold`` is outside [0, 1], ``scope``
            is unknown, or the margins are negative or leave no row.
    """
    _check(logits, threshold, scope, ignore_top, ignore_bottom)
    upsampled = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    probability, label = upsampled.softmax(dim=1).max(dim=1)
    reached = probability >= threshold
    share = reached.float().mean(dim=(1, 2), keepdim=True)
    confident_fraction = sum_over_ranks(share.mean()) / world_size()
    inside = _inside_margins(size[0], ignore_top, ignore_bottom, logits.device)
    if valid is not None:
        inside = inside & valid
    weight = (confident_fraction if scope == "batch" else share) * inside
    return PseudoLabel(
        label=label,
        probability=probability,
        weight=weight.expand_as(probability).contiguous(),
        confident=reached & inside,
        confident_fraction=confident_fraction,
    )


def _inside_margins(height: int, top: float, bottom: float, device: torch.device) -> Tensor:
    """(1, H, 1) bool: rows between the margins. Compared, not sliced: [-0:] would be every row."""
    row = torch.arange(height, device=device).view(1, -1, 1)
    return (row >= round(top * height)) & (row < height - round(bottom * height))


def _check(logits: Tensor, threshold: float, scope: str, top: float, bottom: float) -> None:
    if logits.dim() != 4:
        raise ValueError(f"logits must be (B, C, h, w), got {tuple(logits.shape)}")
    if not 0.0 <= threshold <= 1.0:
        raise ValueError(f"threshold must be in [0, 1], got {threshold}")
    if scope not in SCOPES:
        raise ValueError(f"scope must be one of {SCOPES}, got {scope!r}")
    if not (top >= 0.0 and bottom >= 0.0 and top + bottom < 1.0):
        raise ValueError(
            "ignore_top and ignore_bottom must be non-negative fractions with a sum below 1, "
            f"got {top} and {bottom}"
        )
