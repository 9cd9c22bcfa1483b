"""Building blocks of the prototype code: exact products, one-hot tables, distances, samples.

Legend: B images, C classes, K prototypes a class, D embedding size, N pixels.

Similarities are divided by temperatures of 0.1 and 0.05, so a relative error of 1e-3 (TF32,
bfloat16) moves whole percents of the assignments. Every matrix product of this package therefore
runs inside `full_float32`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_CHUNK_ELEMENTS = 2**24  # float32 numbers converted at a time: 64 MiB


@contextmanager
def full_float32(device: torch.device) -> Iterator[None]:
    """Products inside are true float32: autocast and TF32 are off, and restored on leaving.

    Both are flags of the host; no kernel is launched and nothing waits for the device. A backward
    pass runs outside and keeps the user's choice, whose rounding only perturbs gradients.
    """
    matmul = torch.backends.cuda.matmul
    # PyTorch >= 2.9 refuses to read the old flag once the new one was set; the new one can always
    # be read.
    flag, exact = (
        ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    )
    before = getattr(matmul, flag)
    setattr(matmul, flag, exact)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        setattr(matmul, flag, before)


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or unchanged if it is float64."""
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def one_hot(index: Tensor, num: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(...) -> (..., num). An index of ``num`` or more gives a row of zeros. Never reads the values
    on the host.
    """
    return (index.unsqueeze(-1) == torch.arange(num, device=index.device)).to(dtype)


def squared_distance(points: Tensor, centers: Tensor) -> Tensor:
    """Squared Euclidean distances (..., n, D), (..., m, D) -> (..., n, m) by matrix product.

    Rounding may leave a distance of 0 slightly negative.
    """
    distance = points @ (-2 * centers).mT
    distance += centers.square().sum(-1).unsqueeze(-2)
    distance += points.square().sum(-1, keepdim=True)
    return distance


def chunks_of_points(points: Tensor) -> list[slice]:
    """Slices of S that together cover points (C, S, D), each small enough for a float32 copy."""
    num_classes, num_points, dim = points.shape
    step = max(1, _CHUNK_ELEMENTS // max(1, num_classes * dim))
    return [slice(begin, begin + step) for begin in range(0, num_points, step)]


def squared_distance_in_chunks(points: Tensor, centers: Tensor) -> Tensor:
    """`squared_distance`, never negative, of points (C, S, D) of any float type; no gradient."""
    parts = chunks_of_points(points)
    distances = [squared_distance(points[:, part].float(), centers) for part in parts]
    return torch.cat(distances, dim=1).clamp_min_(0)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the masked values, 0 if there is none."""
    return (values * mask).sum() / mask.sum().clamp_min(1)


def sample_per_group(group: Tensor, num_groups: int, count: int) -> tuple[Tensor, Tensor]:
    """At most ``count`` different members of every group, drawn uniformly from the default
    generator.

    One sort by (group, random key) lays the groups side by side in random order; each group's
    sample is where it begins.

    Args:
        group: (N,) int64; members outside [0, G) belong to no group.
        num_groups: G.
        count: wanted members per group.
    Returns: index (G, n) into the N members and valid (G, n) bool, n = min(count, N). Invalid
        places hold a usable index.
    """
    num_members = group.shape[0]
    # float64 holds label + 24 random bits exactly; in float32 the largest keys would round up into
    # the next group.
    keys = group.double() + torch.rand(num_members, device=group.device)
    ordered, order = keys.sort()
    starts = torch.arange(num_groups + 1, device=group.device, dtype=torch.float64)
    edges = torch.searchsorted(ordered, starts).unsqueeze(1)
    place = edges[:-1] + torch.arange(min(count, num_members), device=group.device)
    return order[place.clamp(max=num_members - 1)], place < edges[1:]
