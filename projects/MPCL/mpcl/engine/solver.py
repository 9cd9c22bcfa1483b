"""AdamW with the baselines' parameter groups, and their warm-up poly schedule."""

import torch
from detectron2.solver.build import maybe_add_gradient_clipping
from timm.models import group_parameters
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from ..modeling.timm_backbone import TimmBackbone

# Stem and stages of our Mix Transformer and of detectron2's ResNets, as timm's models name theirs.
_STAGES = {"stem": r"^stages\.0\.patch_embed|^stem", "blocks": r"^(?:stages\.|res)(\d+)"}


def build_optimizer(cfg, model: nn.Module) -> torch.optim.Optimizer:
    """AdamW: encoder at BASE_LR, everything else at HEAD_LR_FACTOR times it, no decay on the
    encoder's norms and on what timm excepts (positional embeddings).

    With LAYER_DECAY below 1 the encoder's rate falls from block to block towards the images; see
    :func:`depth_below_head`. A timm backbone's pyramid and level norms are no part of the encoder:
    they start at random.

    Source: DAFormer (arXiv:2111.14887), section 4. Biases, and the batch norms of the heads, *are*
    decayed there. The layer-wise decay is that of BEiT (arXiv:2106.08254).

    Raises: ValueError: LAYER_DECAY is below 1 and the backbone's layers are not known.
    """
    # The part that starts from pre-trained weights.
    prefix, encoder = "backbone.", model.backbone
    if isinstance(encoder, TimmBackbone):
        prefix, encoder = "backbone.timm.", encoder.timm
    depth = depth_below_head(encoder) if cfg.SOLVER.LAYER_DECAY != 1 else {}
    undecayed = encoder.no_weight_decay() if hasattr(encoder, "no_weight_decay") else ()
    lr, decay = cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY
    groups: dict[object, dict] = {}
    seen: set[nn.Parameter] = set()
    for path, module in model.named_modules():
        for key, parameter in module.named_parameters(path, recurse=False):
            if not parameter.requires_grad or parameter in seen:  # of tied layers, the first
                continue
            seen.add(parameter)
            if not key.startswith(prefix):
                kind, rate, shrink = "head", lr * cfg.SOLVER.HEAD_LR_FACTOR, decay
            else:
                name = key.removeprefix(prefix)
                # The norms of torch, timm and detectron2 have in common this part of their names.
                exempt = "Norm" in type(module).__name__ or name in undecayed
                kind = (depth.get(name, 0), exempt)
                rate = lr * cfg.SOLVER.LAYER_DECAY ** depth.get(name, 0)
                shrink = cfg.SOLVER.WEIGHT_DECAY_NORM if exempt else decay
            group = groups.setdefault(kind, {"params": [], "lr": rate, "weight_decay": shrink})
            group["params"].append(parameter)
    adamw = maybe_add_gradient_clipping(cfg, torch.optim.AdamW)
    return adamw(list(groups.values()), lr=lr, fused=True)


def depth_below_head(encoder: nn.Module) -> dict[str, int]:
    """How far below the heads each parameter of an encoder lies, in blocks of a plain transformer
    or stages of a hierarchical encoder: 1 for the last, n + 1 for the patch embedding before the
    first of n. Layers are grouped as timm does; a final norm belongs to the last block.

    Raises: ValueError: the encoder's layers are not known.
    """
    matcher = encoder.group_matcher(coarse=True) if hasattr(encoder, "group_matcher") else _STAGES
    layers = group_parameters(encoder, matcher, reverse=True)
    last = max(layers.values(), default=0)
    if last == 0:
        raise ValueError(
            f"SOLVER.LAYER_DECAY: the layers of {type(encoder).__name__} are not known; set it to 1"
        )
    return {name: last + 1 - layer for name, layer in layers.items()}


def build_lr_scheduler(cfg, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """``(1 - t/T)^power``, times a linear warm-up from WARMUP_FACTOR to 1 over WARMUP_ITERS.

    The warm-up multiplies the already decaying rate (mmcv's "poly" with linear warm-up), unlike
    detectron2's WarmupParamScheduler, which interpolates between two rates.
    """
    solver = cfg.SOLVER

    def multiplier(iteration: int) -> float:
        ahead = max(0.0, 1 - iteration / solver.WARMUP_ITERS) if solver.WARMUP_ITERS else 0.0
        warmup = 1 - ahead * (1 - solver.WARMUP_FACTOR)
        return warmup * (1 - iteration / solver.MAX_ITER) ** solver.POLY_POWER

    return LambdaLR(optimizer, multiplier)


def check_groups(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Raises ValueError where a saved optimizer's state is of other groups of parameters."""

    def sizes(groups: list[dict]) -> list[int]:
        return [len(group["params"]) for group in groups]

    ours, theirs = sizes(optimizer.param_groups), sizes(saved["param_groups"])
    if ours != theirs:
        raise ValueError(
            f"the optimizer's state is of groups of parameters of the sizes {theirs}, expected "
            f"{ours}: SOLVER.LAYER_DECAY, MODEL.BACKBONE.FREEZE_AT or the network is another"
        )


def rates_of(optimizer: torch.optim.Optimizer) -> list[dict[str, float]]:
    """What the config says of each parameter group; see :func:`set_rates_`."""
    keys = ("initial_lr", "weight_decay")  # the scheduler has noted the former
    return [{key: group[key] for key in keys} for group in optimizer.param_groups]


def set_rates_(
    optimizer: torch.optim.Optimizer, scheduler: LambdaLR, rates: list[dict[str, float]]
) -> None:
    """Gives a resumed run the rates of its config, at the place of the schedule where it is.

    A checkpoint brings the rates that it was trained with, as it brings Adam's moments: a smaller
    SOLVER.BASE_LR, which is what helps a run that has diverged, would be forgotten in silence.
    """
    scheduler.base_lrs = [rate["initial_lr"] for rate in rates]
    for group, rate, multiplier in zip(optimizer.param_groups, rates, scheduler.lr_lambdas):
        group.update(rate, lr=rate["initial_lr"] * multiplier(scheduler.last_epoch))
