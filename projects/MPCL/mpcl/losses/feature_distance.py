"""Distance to the features of an ImageNet encoder (DAFormer).

Legend: B images, C classes, (h, w) feature grid, (H, W) pixels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..utils.distributed import sum_over_ranks, world_size
from ..utils.ignore_label import IGNORE_LABEL


def feature_distance(
    student: Tensor,
    reference: Tensor,
    label: Tensor,
    classes: Sequence[int],
    num_classes: int,
    min_ratio: float = 0.75,
) -> Tensor:
    r"""Mean L2 distance to the features of an ImageNet encoder, where certain classes dominate.

    .. math:: L = \frac{\sum_j m_j \lVert f_j - g_j \rVert_2}{\sum_j m_j}

    m selects the feature cells in which the most frequent label, ignored pixels counted as a label
    too, is one of ``classes`` and covers at least ``min_ratio`` of the cell. Cells are squares of
    r = W / w pixels. Where sizes do not divide, r is the larger of W / w and H / h, rounded up, and
    what a border cell has outside the image counts as ignored. The mean is over the selected cells
    of all ranks; all must call.

    Source: DAFormer, arXiv:2111.14887, Eq. (6)-(9). Differs from it in: 0 instead of NaN where no
    cell is selected.

    Args:
        student: (B, D, h, w) features of the source images; receives the gradient. Computed on in
            float32.
        reference: (B, D, h, w) features of the frozen encoder; receives none.
        label: (B, H, W) int64 in [0, C) or IGNORE_LABEL.
        classes: the classes to compare on (in the papers: countable things).
        num_classes: C.
        min_ratio: in (0, 1], inclusive.
    Returns: Scalar float32; 0 and still attached to the graph where no cell is selected.
    Raises: ValueError: the shapes do not belong together, a class is outside [0, C), or
        ``min_ratio`` is outside (0, 1].
    """
    _check_distance(student, reference, label, classes, num_classes, min_ratio)
    wanted = torch.zeros(num_classes + 1, dtype=torch.bool, device=label.device)
    for class_id in classes:  # one by one: a list of indices would be copied from the host
        wanted[class_id] = True
    slot = torch.where(label == IGNORE_LABEL, num_classes, label)
    dominant, ratio = _dominant_class(slot, student.shape[-2:], num_classes)
    selected = wanted[dominant] & (ratio >= min_ratio)
    difference = student.float() - reference.detach().float()
    distance = torch.linalg.vector_norm(difference, dim=1)
    # world_size() undoes the division by it when gradients are averaged over the ranks.
    count = sum_over_ranks(selected.sum()).clamp(min=1) / world_size()
    return torch.where(selected, distance, 0.0).sum() / count


def _dominant_class(slot: Tensor, grid: Sequence[int], num_classes: int) -> tuple[Tensor, Tensor]:
    """Most frequent label of each feature cell, and its share of the cell.

    Args:
        slot: (B, H, W) in [0, C], C for ignored.
        grid: (h, w).
        num_classes: C.
    Returns: (B, h, w) int64 in [0, C], and (B, h, w) float32 in (0, 1].
    """
    (rows, columns), (height, width) = grid, slot.shape[-2:]
    side = max(-(-height // rows), -(-width // columns))
    outside = (0, columns * side - width, 0, rows * side - height)
    cells = F.pad(slot, outside, value=num_classes)
    cells = cells.view(-1, rows, side, columns, side).transpose(2, 3).flatten(3)
    # Counted by comparison: as float one-hot maps this would be the largest tensor of the step, and
    # adaptive pooling is not deterministic.
    labels = torch.arange(num_classes + 1, device=slot.device)
    share, dominant = (cells.unsqueeze(-1) == labels).sum(dim=3).max(dim=-1)
    return dominant, share / side**2


def _check_distance(
    student: Tensor,
    reference: Tensor,
    label: Tensor,
    classes: Sequence[int],
    num_classes: int,
    min_ratio: float,
) -> None:
    if student.dim() != 4 or student.shape != reference.shape:
        shapes = (tuple(student.shape), tuple(reference.shape))
        raise ValueError(f"student and reference must both be (B, D, h, w), got shapes {shapes}")
    if label.dim() != 3 or len(label) != len(student):
        raise ValueError(f"label must be ({len(student)}, H, W), got {tuple(label.shape)}")
    if not all(0 <= c < num_classes for c in classes):
        raise ValueError(f"classes must be in [0, {num_classes}), got {list(classes)}")
    if not 0.0 < min_ratio <= 1.0:
        raise ValueError(f"min_ratio must be in (0, 1], got {min_ratio}")
