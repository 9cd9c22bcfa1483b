import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from mpcl.config import get_cfg_from
from mpcl.engine.solver import build_lr_scheduler, build_optimizer


def make_cfg(*opts):
    return get_cfg_from("", ["MODEL.DEVICE", "cpu", "MODEL.MIT.VARIANT", "b0", *opts])


@pytest.mark.parametrize("prototypes", ["centroid", "gauss"])
def test_groups_hold_every_parameter_once_with_the_baselines_rates_and_decay(prototypes):
    model = build_model(make_cfg("PROTOTYPES.TYPE", prototypes))
    groups = build_optimizer(make_cfg(), model).param_groups
    held = [id(p) for group in groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    group_of = {id(p): g for g in groups for p in g["params"]}
    for name, parameter in model.named_parameters():
        group = group_of[id(parameter)]
        owner = model.get_submodule(name.rpartition(".")[0])
        in_encoder = name.startswith("backbone.")
        exempt = in_encoder and isinstance(owner, nn.LayerNorm)
        assert group["lr"] == pytest.approx(6e-5 if in_encoder else 6e-4), name
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
    cfg = make_cfg("SOLVER.MAX_ITER", 40000, "SOLVER.WARMUP_ITERS", 1500)
    scheduler = build_lr_scheduler(cfg, torch.optim.AdamW([torch.zeros(1)], lr=6e-5))
    assert 6e-5 * scheduler.lr_lambdas[0](iteration) == pytest.approx(rate, rel=1e-5)


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


def timm_cfg(name, decay):
    backbone = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name)
    return make_cfg(*backbone, "SOLVER.LAYER_DECAY", decay)


def rates(cfg) -> dict[str, float]:
    """Each parameter's rate in units of BASE_LR."""
    model = build_model(cfg)
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build_optimizer(cfg, model).param_groups
    found = {names[id(p)]: g["lr"] / cfg.SOLVER.BASE_LR for g in groups for p in g["params"]}
    assert found.keys() == set(names.values())
    return found


# Factors 1/2, 1/4, ... of the last, the last but one, ... block or stage, by hand.
LAYER_DECAYS = {
    "plain transformer": (
        timm_cfg("vit_tiny_patch16_224", 0.5),  # 12 blocks
        {
            "backbone.timm.cls_token": 0.5**13,
            "backbone.timm.pos_embed": 0.5**13,
            "backbone.timm.patch_embed.proj.weight": 0.5**13,
            "backbone.timm.blocks.0.attn.qkv.weight": 0.5**12,
            "backbone.timm.blocks.6.norm1.bias": 0.5**6,
            "backbone.timm.blocks.11.mlp.fc2.weight": 0.5,
            "backbone.timm.norm.weight": 0.5,
            "backbone.resize.0.0.weight": 10.0,  # the pyramid starts at random
            "backbone.norms.3.weight": 10.0,
            "sem_seg_head.classifier.weight": 10.0,
        },
    ),
    "ConvNeXt": (
        timm_cfg("convnext_atto", 0.5),
        {
            "backbone.timm.stem.0.weight": 0.5**5,
            "backbone.timm.stages.0.blocks.0.conv_dw.weight": 0.5**4,
            "backbone.timm.stages.2.downsample.1.weight": 0.5**2,
            "backbone.timm.stages.2.blocks.5.mlp.fc1.weight": 0.5**2,
            "backbone.timm.stages.3.blocks.1.mlp.fc2.bias": 0.5,
        },
    ),
    "Mix Transformer": (
        make_cfg("SOLVER.LAYER_DECAY", 0.5),
        {
            "backbone.stages.0.patch_embed.proj.weight": 0.5**5,
            "backbone.stages.0.blocks.1.ffn.fc1.weight": 0.5**4,
            "backbone.stages.1.patch_embed.proj.weight": 0.5**3,
            "backbone.stages.3.norm.weight": 0.5,
            "sem_seg_head.classifier.weight": 10.0,
        },
    ),
    "ResNet": (
        make_cfg(
            *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 50),
            *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
            *("SOLVER.LAYER_DECAY", 0.5),
        ),
        {
            "backbone.stem.conv1.weight": 0.5**5,
            "backbone.res2.0.conv1.weight": 0.5**4,
            "backbone.res5.2.conv3.weight": 0.5,
        },
    ),
}


@pytest.mark.parametrize("encoder", LAYER_DECAYS)
def test_layer_decay_lowers_the_rate_towards_the_images(encoder):
    cfg, expected = LAYER_DECAYS[encoder]
    found = rates(cfg)
    for name, factor in expected.items():
        assert found[name] == pytest.approx(factor), name
    cfg = cfg.clone()
    cfg.SOLVER.LAYER_DECAY = 1.0
    assert set(rates(cfg).values()) == {1.0, 10.0}  # without it, an encoder has one rate


@pytest.mark.parametrize(
    ("name", "exempt"),
    [
        ("test_vit", {"cls_token", "pos_embed", "blocks.1.norm2.weight", "norm.bias"}),
        ("test_convnext", {"stem.1.weight", "stages.3.blocks.0.norm.bias"}),
        ("test_resnet", {"bn1.weight", "layer4.0.bn2.bias"}),
        ("swin_tiny_patch4_window7_224", {"layers.0.blocks.0.attn.relative_position_bias_table"}),
    ],
)
def test_norms_and_positions_of_an_encoder_are_not_decayed(name, exempt):
    cfg = timm_cfg(name, 1.0)
    model = build_model(cfg)
    groups = build_optimizer(cfg, model).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    parameters = dict(model.backbone.timm.named_parameters())
    assert {decay[id(parameters[key])] for key in exempt} == {0.0}
    assert all(decay[id(p)] == 0.01 for p in parameters.values() if p.dim() == 4 and len(p) > 1)


def test_layer_decay_of_unknown_layers_is_refused():
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    with pytest.raises(ValueError, match=r"LAYER_DECAY: the layers of Sequential"):
        build_optimizer(make_cfg("SOLVER.LAYER_DECAY", 0.9), model)
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match=r"SOLVER\.LAYER_DECAY is"):
            make_cfg("SOLVER.LAYER_DECAY", wrong)


def test_a_tied_parameter_is_optimised_once():
    model = nn.Module()
    model.backbone, model.head = nn.Linear(2, 2), nn.Linear(2, 2)
    model.head.weight = model.backbone.weight
    groups = build_optimizer(get_cfg_from(""), model).param_groups
    listed = [parameter for group in groups for parameter in group["params"]]
    assert len(listed) == len({id(parameter) for parameter in listed}) == 3


def test_warm_up_and_power_are_those_of_the_config():
    solver = {"MAX_ITER": 100, "WARMUP_ITERS": 10, "WARMUP_FACTOR": 0.2, "POLY_POWER": 0.9}
    cfg = make_cfg(*(word for key, value in solver.items() for word in (f"SOLVER.{key}", value)))
    factor = build_lr_scheduler(cfg, torch.optim.AdamW([torch.zeros(1)], lr=1.0)).lr_lambdas[0]
    assert factor(0) == pytest.approx(0.2)
    assert factor(5) == pytest.approx(0.6 * 0.95**0.9)  # halfway from 0.2 to 1
    assert factor(10) == pytest.approx(0.9**0.9) and factor(50) == pytest.approx(0.5**0.9)


def test_norms_of_the_encoder_have_a_decay_of_their_own():
    model = nn.Module()
    model.backbone = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    model.head = nn.BatchNorm1d(3)
    cfg = make_cfg("SOLVER.WEIGHT_DECAY", 0.03, "SOLVER.WEIGHT_DECAY_NORM", 0.007)
    groups = build_optimizer(cfg, model).param_groups
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    found = {name: decay[id(p)] for name, p in model.named_parameters()}
    assert found == {
        **{"backbone.0.weight": 0.03, "backbone.0.bias": 0.03},
        **{"backbone.1.weight": 0.007, "backbone.1.bias": 0.007},
        **{"head.weight": 0.03, "head.bias": 0.03},  # of the heads, norms are decayed too
    }
