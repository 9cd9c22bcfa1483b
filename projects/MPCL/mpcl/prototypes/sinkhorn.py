r"""Balanced assignment of pixels to the prototypes of their class (Sinkhorn), all classes and ranks
at once.

Legend: C classes, K prototypes a class, N pixels, P places of a pool for each class.

For class c with L pixels the transport plan Q has pixel marginals 1 and prototype marginals L / K:

.. math:: \max_Q \langle Q, S \rangle + \epsilon H(Q),
    \quad Q 1_K = 1_L, \quad Q^T 1_L = \tfrac{L}{K} 1_K

Its solution is :math:`Q = \mathrm{softmax}_K(S / \epsilon + g_c)` with one *column potential* per
(class, prototype). A sweep is a softmax over K (makes pixel marginals exact, cannot overflow) and a
shift of the potentials by the log ratio of wanted and actual column sums. Every class has the same
number of places, some of which may be empty: so classes need no loop and no host read, and ranks
need to sum one small table a sweep.

Source: MPCL, Eqs. (13), (14). The paper names Greenkhorn, which reaches the same plan one row or
column at a time.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..utils.distributed import sum_over_ranks
from .numerics import at_least_float32

LEAST_SHARE = 4  # pixels a prototype, below which a class is not balanced


class Balance(NamedTuple):
    """What :func:`balance` finds.

    Attributes:
        potentials: (C, K) column potentials g, zero where nothing was balanced.
        violation: scalar, largest |column sum / (L / K) - 1| over the balanced classes; 0 if there
            is none.
    """

    potentials: Tensor
    violation: Tensor


@torch.no_grad()
def balance(similarity: Tensor, valid: Tensor, *, epsilon: float, sweeps: int = 10) -> Balance:
    """Column potentials under which each prototype of a class gets the same mass of the class's
    pixels. Every rank must call it.

    A class with fewer than 4 K pixels (over all ranks) keeps zero potentials, that is,
    nearest-prototype assignment: with a single pixel the balanced plan is exactly uniform and its
    argmax is a tie.

    Args:
        similarity: (K, C, P) of the pixels in each class's places to the prototypes of that class;
            float64 stays so, all else is float32. K comes first, because a softmax over a few
            numbers side by side is slow.
        valid: (C, P) bool, the places that hold a pixel. One whose similarities are not finite
            takes no part.
        epsilon: entropic weight > 0, in units of the similarity.
        sweeps: number of sweeps >= 0; each is a row step, then a column step. The row step of
            :func:`assign` is the last.
    Raises:
        ValueError: ``epsilon`` is not positive, ``sweeps`` is negative, or the shapes do not match.
    """
    _check_epsilon(epsilon)
    if sweeps < 0:
        raise ValueError(f"sweeps is {sweeps}, expected 0 or more")
    if similarity.dim() != 3 or valid.shape != similarity.shape[1:]:
        raise ValueError(
            f"similarity has shape {tuple(similarity.shape)} and valid {tuple(valid.shape)}, "
            "expected (K, C, P) and (C, P)"
        )
    logits = at_least_float32(similarity) / epsilon
    valid = valid & logits.isfinite().all(0)
    logits, mass = torch.where(valid, logits, 0.0), valid.to(logits.dtype)
    share = sum_over_ranks(mass.sum(1)) / len(logits)  # L / K
    balanced = share >= LEAST_SHARE
    potentials = logits.new_zeros(logits.shape[:2])  # (K, C)

    def column_sums() -> Tensor:
        plan = (logits + potentials.unsqueeze(-1)).softmax(0)
        return sum_over_ranks((plan * mass).sum(-1))

    least = torch.finfo(logits.dtype).tiny
    for _ in range(sweeps):
        step = share.log() - column_sums().clamp_min(least).log()
        potentials += torch.where(balanced, step, 0.0)
    excess = (column_sums() / share - 1).abs()
    violation = torch.where(balanced, excess, 0.0).amax()
    return Balance(potentials.t().contiguous(), violation)


@torch.no_grad()
def assign(similarity: Tensor, label: Tensor, potentials: Tensor, epsilon: float) -> Tensor:
    """The prototype with the largest entry of each pixel's row of the plan: argmax over K of S /
    epsilon + potential.

    Args:
        similarity: (N, K) of each pixel to the prototypes of its own class.
        label: (N,) int64 in [0, C].
        potentials: (C, K) from :func:`balance`.
        epsilon: the value given to :func:`balance`.
    Returns: (N,) int64 in [0, K). What pixels with label C get has no meaning.
    Raises: ValueError: ``epsilon`` is not positive.
    """
    _check_epsilon(epsilon)
    own = potentials[label.clamp(max=len(potentials) - 1)]
    return (at_least_float32(similarity) / epsilon + own).argmax(1)


def _check_epsilon(epsilon: float) -> None:
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}, expected a positive number")
