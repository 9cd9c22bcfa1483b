"""Random members of every class (or class of an image) at once, without a host read."""

import torch
from torch import Tensor


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
