"""Normalised pixel embeddings.

Legend: D embedding size, N pixels.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NORMALIZATIONS = ("layer", "l2", "none")
_EPS = 1e-6  # added to the variance ("layer"), or the least length ("l2")


def normalize_embeddings(x: Tensor, mode: str) -> Tensor:
    r"""Brings embeddings to unit scale: root mean square 1 over their D channels, i.e. length
    :math:`\sqrt{D}`.

    Temperature, entropic weight and variance floor are stated for this scale, and the similarities
    divide by D.

    - ``"layer"``: layer normalisation without affine parameters (zero mean, unit variance over the
      channels).
    - ``"l2"``: the unit vector times :math:`\sqrt{D}`; its squared distances over D are those of
      unit vectors.
    - ``"none"``: as the head gives them.

    Gradients flow to ``x`` and stay finite, also at a vector of zeros.

    Source: not in the paper, which gives a temperature and no normalisation; see docs/METHOD.md,
    reading 1.

    Args:
        x: (B, D, ...) embeddings of any floating type.
        mode: one of `NORMALIZATIONS`.
    Returns: float32 tensor of the same shape. ``"layer"`` leaves the channels innermost in memory,
        so flattening to (N, D) copies nothing.
    Raises: ValueError: ``mode`` is unknown.
    """
    if mode not in NORMALIZATIONS:
        raise ValueError(f"mode is {mode!r}, expected one of {NORMALIZATIONS}")
    x, size = x.float(), x.shape[1]
    if mode == "none":
        return x
    if mode == "l2":
        return F.normalize(x, eps=_EPS).mul(math.sqrt(size))
    with torch.autocast(x.device.type, enabled=False):
        rows: Tensor = F.layer_norm(x.movedim(1, -1), (size,), eps=_EPS)
        return rows.movedim(-1, 1)
