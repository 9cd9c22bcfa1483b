"""Batch norm over the images of all ranks.

With plain batch norm each rank would normalise by, and keep, statistics of its own images; teachers
would differ, and only rank 0's statistics would be saved.
"""

import torch
from detectron2.layers import NaiveSyncBatchNorm
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import Tensor, nn


class ExactSyncBatchNorm(NaiveSyncBatchNorm):
    """detectron2's, which runs on any device, computed on in float32 under autocast too: it takes
    the variance as a difference, of which bfloat16 leaves little."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.float()).to(input.dtype)


class ExactSyncBatchNormAct(ExactSyncBatchNorm):
    """The same with what timm's batch norms do behind the norm."""

    drop: nn.Module
    act: nn.Module

    def forward(self, input: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(input)))


def synchronise_batch_norm(model: nn.Module, device: str) -> nn.Module:
    """Replaces batch norms, timm's with their activations too, by torch's SyncBatchNorm, or, as
    that needs GPUs, on others by :class:`ExactSyncBatchNorm`. Parameters and buffers keep their
    names and values."""
    if torch.device(device).type == "cuda":
        return convert_sync_batchnorm(model)
    plain = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in (nn.BatchNorm2d, BatchNormAct2d)
    ]
    for parent, name, child in plain:
        with_activation = isinstance(child, BatchNormAct2d)
        norm = (ExactSyncBatchNormAct if with_activation else ExactSyncBatchNorm)(
            child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
        )
        norm.load_state_dict(child.state_dict())
        norm.train(child.training)
        if with_activation:
            norm.drop, norm.act = child.drop, child.act
        setattr(parent, name, norm.to(device))
    return model
