"""Batch norm over the images of all ranks.

With plain batch norm each rank would normalise by, and keep, statistics of its own images; teachers
would differ, and only rank 0's statistics would be saved.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from ..utils.distributed import gather_over_ranks, world_size

_PIXELS = (0, 2, 3)


class SyncBatchNorm(nn.BatchNorm2d):
    """Batch norm by the mean and variance of all ranks' images; in evaluation and on a single rank
    the plain one. All ranks must bring inputs of one shape.

    Differs from torch's in: no rank may be without images. Looking for such ranks makes torch's
    wait for the device in every forward. Runs on any device.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        output, mean, variance = _Normalise.apply(input, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            with torch.no_grad():
                self.num_batches_tracked.add_(1)
                count = world_size() * input.numel() / input.shape[1]
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)
        return output


class SyncBatchNormAct(SyncBatchNorm):
    """The same with what timm's batch norms do behind the norm."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


class _Normalise(torch.autograd.Function):
    """Keeps the input in its own precision for the backward, and computes in float32."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float):
        variance, mean = torch.var_mean(input.float(), dim=_PIXELS, correction=0)
        mean, variance = gather_over_ranks(torch.stack([mean, variance])[None]).unbind(1)
        # Of all ranks: the mean of their variances, and the variance of their means.
        variance = variance.mean(0) + mean.var(0, correction=0)
        mean = mean.mean(0)
        ctx.save_for_backward(input, weight, mean, (variance + eps).rsqrt())
        output = F.batch_norm(input, mean, variance, weight, bias, eps=eps)
        ctx.mark_non_differentiable(mean, variance)
        return output, mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Any):
        input, weight, mean, scale = ctx.saved_tensors
        column = (1, -1, 1, 1)
        normalised = (input.float() - mean.view(column)) * scale.view(column)
        gradient = gradient.float()
        own = torch.stack([gradient.sum(_PIXELS), (gradient * normalised).sum(_PIXELS)])
        total = own.clone()
        dist.all_reduce(total)
        shift, tilt = (total / (world_size() * input[:, 0].numel())).view(2, *column)
        factor = (weight * scale).view(column)
        of_input = factor * (gradient - shift - normalised * tilt)
        return of_input.to(input.dtype), own[1], own[0], None


def synchronise_batch_norm(model: nn.Module) -> nn.Module:
    """Replaces batch norms, torch's SyncBatchNorm and timm's with their activations too, by
    :class:`SyncBatchNorm`. Parameters and buffers keep their names and values."""
    replaced = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in (nn.BatchNorm2d, nn.SyncBatchNorm, BatchNormAct2d)
    ]
    for parent, name, child in replaced:
        with_activation = isinstance(child, BatchNormAct2d)
        norm = (SyncBatchNormAct if with_activation else SyncBatchNorm)(
            child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
        )
        norm.load_state_dict(child.state_dict())
        for name_of, parameter in child.named_parameters():
            norm.get_parameter(name_of).requires_grad_(parameter.requires_grad)
        norm.train(child.training)
        if with_activation:
            norm.drop, norm.act = child.drop, child.act
        setattr(parent, name, norm.to(child.weight.device))
    return model
