r"""Balanced assignment of pixels to the prototypes of their class (Sinkhorn), all classes and ranks
at once.

Legend: B images, C classes, K prototypes a class, D embedding size, N pixels.

For class c with L pixels the transport plan Q has pixel marginals 1 and prototype marginals L / K:

.. math:: \max_Q \langle Q, S \rangle + \epsilon H(Q), \quad Q 1_K = 1_L, \quad Q^T 1_L =
\tfrac{L}{K} 1_K

Its solution is :math:`Q = \mathrm{softmax}_K(S / \epsilon + g_c)` with one *column potential* per
(class, prototype). A sweep is a softmax over K (makes pixel marginals exact, cannot overflow) and a
shift of the potentials by the log ratio of wanted and actual column sums. Pixels lie in tiles of
one class each, whose sums a product with a one-hot table adds up, which unlike an indexed addition
is deterministic on CUDA; so classes need no loop and no host read, and ranks need to sum one small
table per sweep.

Source: MPCL, Eqs. (13), (14). The paper names Greenkhorn, which reaches the same plan one row or
column at a time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.distributed import sum_over_ranks
from .numerics import at_least_float32, full_float32, one_hot
from .tiles import tile_by_class


class Balance(NamedTuple):
    """Attributes:
    potentials: (C + 1, K) column potentials, zero where nothing was balanced and in the last row.
    violation: scalar, largest |column sum / (L / K) - 1| over the balanced classes; 0 if there is
        none.
    """

    potentials: Tensor
    violation: Tensor


@torch.no_grad()
def balance(
    similarity: Tensor,
    label: Tensor,
    num_classes: int,
    *,
    epsilon: float,
    sweeps: int = 10,
    min_pixels_per_prototype: int = 4,
) -> Balance:
    """Column potentials under which each prototype of a class gets the same mass of the class's
    pixels.

    A class with fewer than ``min_pixels_per_prototype * K`` pixels (over all ranks) keeps zero
    potentials, that is, nearest-prototype assignment: with a single pixel the balanced plan is
    exactly uniform and its argmax is a tie.

    Args:
        similarity: (N, K) of each pixel to the prototypes of its own class; float64 stays so, all
            else is float32. A row that is not finite takes no part.
        label: (N,) int64 in [0, C]; C takes no part.
        num_classes: C.
        epsilon: entropic weight > 0, in units of the similarity.
        sweeps: number of sweeps >= 0; each is a row step, then a column step. The row step of
            `assign` is the last.
        min_pixels_per_prototype: see above.
    Raises:
        ValueError: ``epsilon`` is not positive, ``sweeps`` is negative, or the shapes do not match.
    """
    _check_epsilon(epsilon)
    if sweeps < 0:
        raise ValueError(f"sweeps is {sweeps}, expected 0 or more")
    if similarity.dim() != 2 or label.shape != similarity.shape[:1]:
        raise ValueError(
            f"similarity has shape {tuple(similarity.shape)} and label {tuple(label.shape)}, "
            "expected (N, K) and (N,)"
        )
    logits = at_least_float32(similarity) / epsilon
    num_prototypes = logits.shape[1]
    if len(label) == 0:  # every rank takes part in the sums
        logits, label = logits.new_zeros(1, num_prototypes), label.new_full((1,), num_classes)
    finite = logits.isfinite().all(1)
    tiles = tile_by_class(torch.where(finite, label, num_classes), num_classes)
    # (K, M, T): softmax and potentials then run along contiguous places.
    logits = tiles.lay_out(logits).masked_fill_(~tiles.valid.unsqueeze(-1), 0)
    logits = logits.permute(2, 0, 1).contiguous()
    of_class = one_hot(tiles.label, num_classes, logits.dtype)
    valid = tiles.valid.to(logits.dtype)
    least_mass = torch.finfo(logits.dtype).tiny
    potentials = logits.new_zeros(num_prototypes, num_classes + 1)

    def column_sums() -> Tensor:
        plan = (logits + potentials[:, tiles.label].unsqueeze(-1)).softmax(0)
        return sum_over_ranks((plan * valid).sum(-1) @ of_class)

    with full_float32(logits.device):
        share = sum_over_ranks(valid.sum(1) @ of_class) / num_prototypes
        balanced = share >= min_pixels_per_prototype
        for _ in range(sweeps):
            step = share.log() - column_sums().clamp_min(least_mass).log()
            potentials[:, :-1] += torch.where(balanced, step, 0.0)
        excess = (column_sums() / share - 1).abs()
    return Balance(potentials.t().contiguous(), torch.where(balanced, excess, 0.0).amax())


@torch.no_grad()
def assign(similarity: Tensor, label: Tensor, potentials: Tensor, epsilon: float) -> Tensor:
    """The prototype with the largest entry of each pixel's row of the plan: argmax over K of S /
    epsilon + potential.

    Args:
        similarity: (N, K) of each pixel to the prototypes of its own class.
        label: (N,) int64 in [0, C].
        potentials: (C + 1, K) from `balance`.
        epsilon: the value given to `balance`.
    Returns:
        (N,) int64 in [0, K). Pixels with label C get their nearest prototype; the caller masks
        them.
    Raises:
        ValueError: ``epsilon`` is not positive.
    """
    _check_epsilon(epsilon)
    return (at_least_float32(similarity) / epsilon + potentials[label]).argmax(1)


def _check_epsilon(epsilon: float) -> None:
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}, expected a positive number")
