"""AdamW with the baselines' parameter groups, and their warm-up poly schedule."""

import torch
from detectron2.solver import LRMultiplier
from detectron2.solver.build import maybe_add_gradient_clipping
from fvcore.common.param_scheduler import ParamScheduler
from torch import nn


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW: encoder at BASE_LR, everything else at HEAD_LR_FACTOR times it, no decay on the
    encoder's LayerNorms.

    Source: DAFormer (arXiv:2111.14887), section 4. Biases, and the batch norms of the heads, *are*
    decayed there.
    """
    encoder, encoder_norm, head = [], [], []
    for name, module in model.named_modules():
        in_encoder = name.split(".")[0] == "backbone"
        group = (
            (encoder_norm if isinstance(module, nn.LayerNorm) else encoder) if in_encoder else head
        )
        group.extend(p for p in module.parameters(recurse=False) if p.requires_grad)
    lr, decay = cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY
    groups = [
        {"params": encoder, "lr": lr, "weight_decay": decay},
        {"params": encoder_norm, "lr": lr, "weight_decay": cfg.SOLVER.WEIGHT_DECAY_NORM},
        {"params": head, "lr": lr * cfg.SOLVER.HEAD_LR_FACTOR, "weight_decay": decay},
    ]
    adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return adamw([group for group in groups if group["params"]], lr=lr, fused=True)


class WarmupPoly(ParamScheduler):
    """``(1 - t/T)^power``, multiplied by a linear warm-up from ``warmup_factor`` to 1 over
    ``warmup_iters``.

    The warm-up multiplies the already decaying rate (mmcv's "poly" with linear warm-up), unlike
    detectron2's WarmupParamScheduler, which interpolates between two rates.
    """

    def __init__(
        self, max_iter: int, power: float, warmup_iters: int, warmup_factor: float
    ) -> None:
        self.max_iter = max_iter
        self.power = power
        self.warmup_iters = warmup_iters
        self.warmup_factor = warmup_factor

    def __call__(self, where: float) -> float:
        """Multiplier of the base rate at ``where`` = t/T in [0, 1]."""
        iteration = where * self.max_iter
        warmup = 1.0
        if iteration < self.warmup_iters:
            warmup = 1.0 - (1.0 - iteration / self.warmup_iters) * (1.0 - self.warmup_factor)
        return warmup * (1.0 - where) ** self.power


def build_lr_scheduler(cfg, optimizer: torch.optim.Optimizer) -> LRMultiplier:
    solver = cfg.SOLVER
    schedule = WarmupPoly(
        solver.MAX_ITER, solver.POLY_POWER, solver.WARMUP_ITERS, solver.WARMUP_FACTOR
    )
    return LRMultiplier(optimizer, schedule, solver.MAX_ITER)
