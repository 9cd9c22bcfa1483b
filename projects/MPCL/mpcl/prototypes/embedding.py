"""Normalised pixel embeddings.

Legend: B images, C classes, K prototypes a class, D embedding size, N pixels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

NORMALIZATIONS = ("layer", "l2", "none")


def normalize_embeddings(x: Tensor, mode: str, dim: int = 1, eps: float = 1e-6) -> Tensor:
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

    Source: not in the paper, which gives a temperature and no normalisation; see the list of
    deviations.

    Args:
        x: embeddings of any floating type with D channels along ``dim``.
        mode: one of `NORMALIZATIONS`.
        dim: the channel dimension.
        eps: added to the variance (``"layer"``), or the least length (``"l2"``).
    Returns:
        float32 tensor of the same shape. ``"layer"`` leaves the channels innermost in memory, so
        flattening to (N, D) copies nothing.
    Raises:
        ValueError: ``mode`` is unknown.
    """
    if mode not in NORMALIZATIONS:
        raise ValueError(f"mode is {mode!r}, expected one of {NORMALIZATIONS}")
    x = x.float()
    if mode == "none":
        return x
    size = x.shape[dim]
    if mode == "l2":
        scaled: Tensor = F.normalize(x, dim=dim, eps=eps) * size**0.5
        return scaled
    with torch.autocast(x.device.type, enabled=False):
        rows = x.movedim(dim, -1)
        if torch.is_grad_enabled() and x.requires_grad:
            normalized: Tensor = _LayerNorm.apply(rows, eps)
        else:
            normalized = F.layer_norm(rows, (size,), eps=eps)
    return normalized.movedim(-1, dim)


class _LayerNorm(torch.autograd.Function):
    """Layer normalisation that keeps its output for the backward, as the similarities do, and not
    its input: an embedding map is among the largest tensors of the step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float) -> Tensor:
        normalized, _, scale = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        ctx.save_for_backward(normalized, scale)
        return normalized

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        normalized, scale = ctx.saved_tensors
        along = (gradient * normalized).mean(-1, keepdim=True)
        centered = gradient - gradient.mean(-1, keepdim=True)
        return centered.addcmul_(normalized, along, value=-1).mul_(scale), None
