"""Sums and gathers over the ranks of a job; the identity in a single process.

Everything that is kept outside DDP's parameters (prototypes, feature bank) is *replicated*: each
rank starts from the same state and updates it with values from these functions only, so the ranks
never drift apart.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Number of processes in the job; 1 when torch.distributed is not in use."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Index of this process in the job; 0 when torch.distributed is not in use."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Element-wise sum over all ranks. No gradient flows through it. Every rank must call it."""
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def from_first_rank(tensor: Tensor) -> Tensor:
    """The first rank's tensor, in the memory of each rank's own of the same shape. Every rank must
    call it."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def gather_over_ranks(tensor: Tensor) -> Tensor:
    """Concatenates equally shaped tensors of all ranks along dim 0, in rank order. No gradient
    flows through it."""
    tensor = tensor.detach()
    if world_size() == 1:
        return tensor
    parts = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(parts, tensor.contiguous())
    return torch.cat(parts)
