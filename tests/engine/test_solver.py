import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from mpcl.config import get_cfg_from
from mpcl.engine.solver import WarmupPoly, build_lr_scheduler, build_optimizer


def make_cfg(*opts):
    return get_cfg_from("", ["MODEL.DEVICE", "cpu", "MODEL.MIT.VARIANT", "b0", *opts])


def test_groups_hold_every_parameter_once():
    model = build_model(make_cfg("PROTOTYPES.TYPE", "gauss"))
    optimizer = build_optimizer(make_cfg(), model)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


def test_rates_and_decay_follow_the_baselines():
    model = build_model(make_cfg("PROTOTYPES.TYPE", "centroid"))
    optimizer = build_optimizer(make_cfg(), model)
    group_of = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        owner = model.get_submodule(name.rpartition(".")[0])
        in_encoder = name.startswith("backbone.")
        exempt = in_encoder and isinstance(owner, nn.LayerNorm)
        assert group["initial_lr" if "initial_lr" in group else "lr"] == pytest.approx(
            6e-5 if in_encoder else 6e-4
        ), name
        assert group["weight_decay"] == (0.0 if exempt else 0.01), name


# DAFormer's published values: encoder rate at some iterations of 40,000.
@pytest.mark.parametrize(
    ("iteration", "rate"),
    [
        (0, 6e-11),
        (1, 4.005896e-08),
        (750, 2.943753e-05),
        (1499, 5.7713e-05),
        (1500, 5.775e-05),
        (20000, 3e-05),
        (39999, 1.5e-09),
    ],
)
def test_schedule_has_the_baselines_values(iteration, rate):
    schedule = WarmupPoly(40000, power=1.0, warmup_iters=1500, warmup_factor=1e-6)
    assert 6e-5 * schedule(iteration / 40000) == pytest.approx(rate, rel=1e-5)


def test_scheduler_moves_all_groups_together():
    cfg = make_cfg("SOLVER.MAX_ITER", 10, "SOLVER.WARMUP_ITERS", 0)
    optimizer = build_optimizer(cfg, build_model(cfg))
    scheduler = build_lr_scheduler(cfg, optimizer)
    for _ in range(5):
        optimizer.step()
        scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([3e-5, 3e-5, 3e-4])


def test_gradient_clipping_of_detectron2_is_honoured():
    cfg = make_cfg(
        *("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
        *("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", 1e-3),
    )
    model = nn.Module()
    model.backbone = nn.Linear(2, 1, bias=False)
    optimizer = build_optimizer(cfg, model)
    model.backbone.weight.grad = torch.tensor([[30.0, 40.0]])
    optimizer.step()
    assert model.backbone.weight.grad.norm() == pytest.approx(1e-3, rel=1e-3)
