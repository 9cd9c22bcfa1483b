"""Encoders of timm and detectron2 as backbones, with random weights of small models."""

import logging
import pickle
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from detectron2.modeling import build_backbone, build_model
from safetensors.torch import save_file
from timm.layers import Conv2dSame, resample_abs_pos_embed, resample_patch_embed
from torch import nn

from mpcl.checkpoint.weights import WeightsCheckpointer
from mpcl.config import get_cfg_from
from mpcl.engine.adaptation import build_reference_encoder
from mpcl.engine.trainer import AdaptationTrainer
from mpcl.modeling.timm_backbone import TimmBackbone, pixel_statistics

HIERARCHICAL = ["convnext_atto", "pvt_v2_b0", "swin_tiny_patch4_window7_224", "test_resnet"]
PLAIN = ["test_vit", "vit_tiny_patch16_224", "eva02_tiny_patch14_224"]
LARGE = ["vit_small_patch14_reg4_dinov2", "vit_small_patch16_dinov3"]


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


def make_cfg(name: str, *opts):
    backbone = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name)
    return get_cfg_from("", ["MODEL.DEVICE", "cpu", *backbone, *opts])


class Segmentor(nn.Module):
    """The least that has a backbone and something else."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = TimmBackbone(name)
        self.sem_seg_head = nn.Conv2d(4, 3, 1)


# ---- the contract of a backbone


@pytest.mark.parametrize("name", HIERARCHICAL + PLAIN + LARGE)
def test_levels_lie_at_strides_4_to_32_and_train_every_parameter(name):
    backbone = TimmBackbone(name)
    shapes = backbone.output_shape()
    assert {key: shape.stride for key, shape in shapes.items()} == {
        "stage1": 4,
        "stage2": 8,
        "stage3": 16,
        "stage4": 32,
    }
    levels = backbone(torch.randn(1, 3, 64, 96))
    for key, shape in shapes.items():
        assert levels[key].shape == (1, shape.channels, 64 // shape.stride, 96 // shape.stride)
        # Layer-normalised: mean 0, variance 1 over the channels, up to epsilon.
        assert levels[key].mean(1).abs().max() < 1e-3
    sum((level * torch.randn_like(level)).sum() for level in levels.values()).backward()
    assert not [key for key, p in backbone.named_parameters() if p.grad is None]


@pytest.mark.parametrize(
    ("name", "size"),
    [("test_convnext", (104, 72)), ("test_vit", (32, 40)), ("pvt_v2_b0", (33, 47))],
)
def test_levels_of_any_size_round_up(name, size):
    levels = TimmBackbone(name).eval()(torch.randn(1, 3, *size))
    for level, stride in zip(levels.values(), (4, 8, 16, 32)):
        assert level.shape[2:] == (-(-size[0] // stride), -(-size[1] // stride))


def layer_norm(grid):
    return F.layer_norm(grid.permute(0, 2, 3, 1), grid.shape[1:2], eps=1e-6).permute(0, 3, 1, 2)


@pytest.mark.parametrize("name", ["convnext_atto", "pvt_v2_b0", "swin_tiny_patch4_window7_224"])
def test_hierarchical_levels_are_timms_features(name):
    backbone = TimmBackbone(name).eval()
    theirs = timm.create_model(name, num_classes=0).eval()
    theirs.load_state_dict(backbone.timm.state_dict(), strict=False)
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        _, expected = theirs.forward_intermediates(images)
        found = backbone(images)
    for level, grid in zip(found.values(), expected[-4:]):
        torch.testing.assert_close(level, layer_norm(grid), rtol=1e-4, atol=1e-4)


def test_plain_levels_are_made_of_timms_normed_tokens():
    backbone = TimmBackbone("vit_tiny_patch16_224").eval()
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    theirs.load_state_dict(backbone.timm.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        tokens = theirs.forward_features(images)[:, 1:]  # without the class token
        grid = tokens.transpose(1, 2).unflatten(2, (14, 14))
        found = backbone(images)
    torch.testing.assert_close(found["stage3"], layer_norm(grid), rtol=1e-4, atol=1e-4)
    pooled = grid.unflatten(3, (7, 2)).unflatten(2, (7, 2)).amax((3, 5))
    torch.testing.assert_close(found["stage4"], layer_norm(pooled), rtol=1e-4, atol=1e-4)


def test_padding_leaves_convolutional_maps_where_they_are():
    # Patches of 4 pixels without overlap: the first level of an image is that of its crop.
    backbone = TimmBackbone("test_convnext").eval()
    stem = backbone.timm.stem
    images = torch.randn(1, 3, 40, 72)
    seen = []
    stem.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        backbone(images)
        padded = seen[0]
        torch.testing.assert_close(padded[..., :10, :18], stem(images))
    assert padded.shape[2:] == (16, 24)


def test_gradient_checkpointing_changes_no_gradient():
    plain, saving = TimmBackbone("test_vit"), TimmBackbone("test_vit", grad_checkpointing=True)
    saving.load_state_dict(plain.state_dict())
    images = torch.randn(1, 3, 64, 64)
    for backbone in (plain, saving):
        sum(level.square().sum() for level in backbone(images).values()).backward()
    modules = list(saving.timm.modules())
    assert any(getattr(module, "grad_checkpointing", False) for module in modules)
    for ours, theirs in zip(plain.parameters(), saving.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_stochastic_depth_acts_in_training_only():
    backbone, images = TimmBackbone("test_vit", drop_path=0.9), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        drawn = torch.cat([backbone(images)["stage3"] for _ in range(6)])
        backbone.eval()
        assert torch.equal(backbone(images)["stage3"], backbone(images)["stage3"])
    assert len(drawn.unique(dim=0)) > 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("convnext_tny", "MODEL.TIMM.NAME is 'convnext_tny'.*did you mean convnext_tiny"),
        ("hf-hub:timm/convnext_tiny", "does not have"),
        ("", "MODEL.TIMM.NAME is ''"),
        ("levit_128s", "one size only"),
        ("vit_small_r26_s32_224", "patches of 16 pixels"),
        # (timm 1.0.20 says less about this one.)
        ("convmixer_768_32", r"strides \[7\]; \[4, 8, 16, 32\] are missing|no intermediate"),
    ],
)
def test_models_that_cannot_serve_are_refused_by_name(name, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(name)


@pytest.mark.parametrize("name", ["hrnet_w18_small", "densenet121"])
def test_encoders_without_stochastic_depth_are_built_without_it_and_else_name_the_key(name):
    with pytest.raises(ValueError, match=rf"{name}.*MODEL\.BACKBONE\.DROP_PATH 0\.0, got 0\.1"):
        TimmBackbone(name, drop_path=0.1)
    with torch.device("meta"):
        assert len(TimmBackbone(name, drop_path=0.0).output_shape()) == 4


# ---- normalisation


def test_pixel_statistics_are_timms_own_for_the_tag():
    half = [127.5, 127.5, 127.5]
    assert pixel_statistics("vit_base_patch16_224.augreg_in21k") == (half, half)
    clip = make_cfg("vit_base_patch16_clip_224.openai").MODEL
    published_mean, published_std = [122.7709, 116.7460, 104.0937], [68.5005, 66.6322, 70.3232]
    assert list(clip.PIXEL_MEAN) == pytest.approx(published_mean, abs=1e-3)
    assert list(clip.PIXEL_STD) == pytest.approx(published_std, abs=1e-3)
    model = build_model(make_cfg("vit_tiny_patch16_224.augreg_in21k"))
    assert model.pixel_mean.flatten().tolist() == half


def test_explicit_pixel_statistics_win_also_where_they_are_the_defaults(tmp_path):
    imagenet, half = [123.675, 116.28, 103.53], [127.5] * 3
    cfg = make_cfg("vit_tiny_patch16_224.augreg_in21k", "MODEL.PIXEL_MEAN", imagenet)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    dumped = get_cfg_from(str(tmp_path / "config.yaml"))
    for model in (cfg.MODEL, dumped.MODEL):
        assert (list(model.PIXEL_MEAN), list(model.PIXEL_STD)) == (imagenet, half)


def test_other_backbones_keep_imagenets_statistics():
    cfg = get_cfg_from()
    assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53]
    assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375]


# ---- weights


def published(name: str, **options) -> tuple[nn.Module, dict]:
    """A model as timm publishes it, with its classifier."""
    model = timm.create_model(name, **options).eval()
    return model, {key: tensor.contiguous() for key, tensor in model.state_dict().items()}


def save(state: dict, path: Path) -> str:
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return str(path)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("test_convnext", "model.pth"),
        ("test_vit", "model.safetensors"),
        ("pvt_v2_b0", "pytorch_model.bin"),
    ],
)
def test_published_files_load_without_the_classifier(name, layout, tmp_path, caplog):
    _, state = published(name, num_classes=10)
    path = save(state, tmp_path / layout)
    model = Segmentor(name)
    head = model.sem_seg_head.weight.clone()
    checkpointer = WeightsCheckpointer(model)
    checkpointer.logger.propagate = True
    with caplog.at_level(logging.INFO, logger=checkpointer.logger.name):
        checkpointer.load(path if layout == "model.pth" else str(tmp_path))
    for key, tensor in model.backbone.timm.state_dict().items():
        assert torch.equal(tensor, state[key]), key
    assert torch.equal(model.sem_seg_head.weight, head)
    matched = len(model.backbone.timm.state_dict())
    assert f"timm {name}: {matched} tensors matched" in caplog.text
    assert f"{len(state) - matched} tensors of the file are left out (head." in caplog.text


def test_patches_of_14_pixels_become_16_on_the_same_grid(tmp_path):
    name = "eva02_tiny_patch14_224"
    _, state = published(name)
    model = Segmentor(name)
    WeightsCheckpointer(model).load(save(state, tmp_path / "eva.pth"))
    ours = model.backbone.timm.state_dict()
    assert ours["patch_embed.proj.weight"].shape[2:] == (16, 16)
    resampled = resample_patch_embed(state["patch_embed.proj.weight"], [16, 16])
    torch.testing.assert_close(ours["patch_embed.proj.weight"], resampled)
    assert torch.equal(ours["pos_embed"], state["pos_embed"])  # 16 x 16 tokens, as in the file
    assert torch.equal(ours["blocks.3.mlp.fc2.weight"], state["blocks.3.mlp.fc2.weight"])


def test_patches_of_16_pixels_are_those_of_timms_constructor():
    name = "eva02_tiny_patch14_224"
    backbone = TimmBackbone(name).eval()
    options = {"patch_size": 16, "img_size": 256, "dynamic_img_size": True, "num_classes": 0}
    theirs = timm.create_model(name, **options).eval()
    theirs.load_state_dict(backbone.timm.state_dict(), strict=False)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        tokens = theirs.forward_intermediates(images, intermediates_only=True)[-1]
        found = backbone(images)["stage3"]
    torch.testing.assert_close(found, layer_norm(tokens), rtol=1e-4, atol=1e-4)


def test_positional_embeddings_of_another_size_are_resampled(tmp_path):
    _, state = published("vit_tiny_patch16_224", img_size=96)
    model = Segmentor("vit_tiny_patch16_224")
    WeightsCheckpointer(model).load(save(state, tmp_path / "vit.pth"))
    expected = resample_abs_pos_embed(state["pos_embed"], [14, 14], num_prefix_tokens=1)
    torch.testing.assert_close(model.backbone.timm.pos_embed.data, expected)


def test_the_file_of_dinov3s_authors_gives_timms_tokens(tmp_path):
    # Their names of the class, storage and mask tokens and of layer scale; random values.
    name = "vit_small_patch16_dinov3"
    theirs, state = published(name, num_classes=0)
    renamed = {
        key.replace("reg_token", "storage_tokens")
        .replace("gamma_", "ls")
        .replace(*(("ls1", "ls1.gamma") if "gamma_1" in key else ("ls2", "ls2.gamma"))): tensor
        for key, tensor in state.items()
    }
    renamed["mask_token"] = torch.zeros(1, 384)
    model = Segmentor(name).eval()
    WeightsCheckpointer(model).load(save(renamed, tmp_path / "dinov3_vits16.pth"))
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        tokens = theirs.forward_intermediates(
            F.interpolate(images, 256), norm=True, intermediates_only=True
        )[-1]
        found = model.backbone(F.interpolate(images, 256))["stage3"]
    torch.testing.assert_close(found, layer_norm(tokens), rtol=1e-4, atol=1e-4)


def as_efficientnet_pytorch(model: nn.Module) -> dict:
    """The state of a timm model under efficientnet_pytorch's names, which follow from the order in
    which its layers are called: each network part counts its norms, blocks count through."""
    layers = {"conv_stem": "_conv_stem", "conv_head": "_conv_head", "classifier": "_fc"}
    layers |= {"conv_reduce": "_se_reduce", "conv_expand": "_se_expand"}
    state = {}

    def rename(part: nn.Module, prefix: str, first_norm: int = 0) -> None:
        norms = first_norm
        for key, layer in part.named_modules():
            tensors = dict(layer.named_parameters(recurse=False))
            tensors |= dict(layer.named_buffers(recurse=False))
            if not tensors:
                continue
            key = key.split(".")[-1]
            if isinstance(layer, nn.BatchNorm2d):
                name, norms = f"_bn{norms}", norms + 1
            elif key in layers:
                name = layers[key]
            elif layer.groups > 1:
                name = "_depthwise_conv"
            else:  # widens before the depthwise convolution, projects behind it
                behind = f"{prefix}_depthwise_conv.weight" in state
                name = "_project_conv" if behind else "_expand_conv"
            state.update({f"{prefix}{name}.{kind}": t for kind, t in tensors.items()})

    outside = nn.Module()
    for key, child in model.named_children():
        if key != "blocks":
            outside.add_module(key, child)
    rename(outside, "")
    for index, block in enumerate(block for stage in model.blocks for block in stage):
        rename(block, f"_blocks.{index}.", first_norm=0 if hasattr(block, "conv_pwl") else 1)
    return state


@pytest.mark.skipif(not hasattr(torch.export.Dim, "AUTO"), reason="needs torch >= 2.6")
def test_same_padding_is_constant_in_a_graph_for_any_size():
    """Else it is an expression of the size, deeper with every layer: ONNX took half an hour."""
    backbone = TimmBackbone("tf_mobilenetv3_small_minimal_100")
    layers = [module for module in backbone.modules() if isinstance(module, Conv2dSame)]
    assert len(layers) > 4 and len({type(layer) for layer in layers}) == 1
    sizes = {0: torch.export.Dim.AUTO, 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(
        layers[0], (torch.randn(2, 3, 96, 128),), dynamic_shapes={"maps": sizes}
    )
    (pad,) = [n for n in program.graph.nodes if n.target is torch.ops.aten.pad.default]
    assert all(isinstance(side, int) for side in pad.args[1])


@pytest.mark.parametrize("name", ["tf_efficientnet_b0", "tf_efficientnet_lite1"])
def test_a_file_of_efficientnet_pytorch_gives_timms_features(name, tmp_path):
    theirs, _ = published(name)
    for buffer in theirs.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)  # running statistics of a fresh network are all alike
    path = save(as_efficientnet_pytorch(theirs), tmp_path / "efficientnet.pth")
    model = Segmentor(name).eval()
    WeightsCheckpointer(model).load(path)
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        _, expected = theirs.forward_intermediates(images)
        found = model.backbone(images)
    for level, grid in zip(found.values(), expected[-4:]):
        torch.testing.assert_close(level, layer_norm(grid), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match=r"efficientnet\.pth: .* blocks, MODEL\.TIMM\.NAME has 5"):
        WeightsCheckpointer(Segmentor("test_efficientnet")).load(path)


def test_another_architectures_file_is_refused_with_both_names_and_changes_nothing(tmp_path):
    path = save(published("test_convnext2")[1], tmp_path / "convnext_two.pth")
    model = Segmentor("test_convnext")
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    match = r"convnext_two\.pth: .*not those of test_convnext \(MODEL\.TIMM\.NAME\).*misshapen"
    with pytest.raises(ValueError, match=match):
        WeightsCheckpointer(model).load(path)
    for name in ("test_vit", "pvt_v2_b0"):
        path = save(published(name)[1], tmp_path / f"{name}.pth")
        with pytest.raises(ValueError, match=rf"{name}\.pth: .*test_convnext.*missing"):
            WeightsCheckpointer(model).load(path)
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[key])


def test_files_with_fewer_or_more_blocks_are_refused(tmp_path):
    _, state = published("test_vit")
    model = Segmentor("test_vit")
    deeper = {key.replace("blocks.0.", "blocks.99."): t for key, t in state.items()} | state
    with pytest.raises(ValueError, match=r"12 unknown \(blocks\.99"):
        WeightsCheckpointer(model).load(save(deeper, tmp_path / "deep.pth"))
    shallow = {key: t for key, t in state.items() if not key.startswith("blocks.1.")}
    with pytest.raises(ValueError, match=r"12 missing \(blocks\.1\."):
        WeightsCheckpointer(model).load(save(shallow, tmp_path / "shallow.pth"))


def test_an_own_checkpoint_of_another_encoder_is_refused(tmp_path):
    path = save({"model": Segmentor("test_convnext").state_dict()}, tmp_path / "own.pth")
    model = Segmentor("test_convnext")
    WeightsCheckpointer(model).load(path)
    for other in ("test_convnext2", "test_vit"):
        with pytest.raises(ValueError, match=r"own\.pth: .*backbone do not fit"):
            WeightsCheckpointer(Segmentor(other)).load(path)


def test_the_reference_encoder_sees_what_a_fresh_student_sees_at_the_deepest_level(tmp_path):
    for name in ("test_convnext", "test_vit"):
        path = save(published(name)[1], tmp_path / f"{name}.pth")
        cfg = make_cfg(name, "MODEL.WEIGHTS", path)
        reference = build_reference_encoder(cfg)
        student = build_model(cfg).eval()
        WeightsCheckpointer(student).load(path)
        images = torch.randn(1, 3, 64, 64)
        found = reference(images)["stage4"]
        assert not found.requires_grad
        with torch.no_grad():
            torch.testing.assert_close(found, student.encode(images)["stage4"])
        assert student.deepest_feature == "stage4"


# ---- training


def resnet_options(*opts):
    return [
        *("MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.DEPTH", 18),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "BN"),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["res2", "res3", "res4", "res5"], *opts),
    ]


def timm_options(name: str, *opts):
    return ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", name, *opts]


DECAY = ("SOLVER.LAYER_DECAY", 0.8)
ENCODERS = {
    "convnext": ("daformer_gauss", timm_options("test_convnext")),
    "vit": ("hrda_gauss", timm_options("test_vit", *DECAY, "MODEL.BACKBONE.CHECKPOINT", True)),
    "resnet": ("hrda_gauss", resnet_options(*DECAY)),
}


@pytest.mark.parametrize("encoder", ENCODERS)
def test_training_moves_encoder_and_head_and_the_checkpoint_evaluates(encoder, tiny_cfg):
    method, opts = ENCODERS[encoder]
    once = ("SOLVER.MAX_ITER", 1, "SOLVER.WARMUP_ITERS", 0, "VIS_PERIOD", 0, "DATASETS.TEST", ())
    cfg = tiny_cfg(method, *opts, *once)
    trainer = AdaptationTrainer(cfg)
    before = {key: p.detach().clone() for key, p in trainer.student.named_parameters()}
    trainer.train()
    moved = {
        key.split(".")[0]
        for key, p in trainer.student.named_parameters()
        if (p != before[key]).any()
    }
    assert {"backbone", "sem_seg_head"} <= moved
    evaluated = build_model(cfg)
    WeightsCheckpointer(evaluated).load(f"{cfg.OUTPUT_DIR}/model_final.pth")
    for key, tensor in trainer.student.state_dict().items():
        assert torch.equal(evaluated.state_dict()[key], tensor), key
    scores = evaluated.eval()([{"image": torch.zeros(3, 64, 96)}])[0]["sem_seg"]
    assert scores.shape == (4, 64, 96)


# ---- detectron2's ResNets


def zoo_file(cfg, path: Path, author: str) -> dict:
    """A ResNet of the configured kind as detectron2's model zoo would hold it."""
    state = {key: tensor.numpy() for key, tensor in build_backbone(cfg).state_dict().items()}
    content = {"model": state, "__author__": author, "matching_heuristics": True}
    path.write_bytes(pickle.dumps(content))
    return state


@pytest.mark.parametrize("author", ["torchvision", "Caffe2"])
def test_resnets_start_from_the_model_zoo_which_warns_of_bgr_weights(author, tmp_path, caplog):
    opts = resnet_options("MODEL.WEIGHTS", str(tmp_path / "R-18.pkl"))
    cfg = get_cfg_from("", ["MODEL.DEVICE", "cpu", *opts])
    state = zoo_file(cfg, tmp_path / "R-18.pkl", author)
    model, reference = build_model(cfg), build_reference_encoder(cfg)
    checkpointer = WeightsCheckpointer(model)
    checkpointer.logger.propagate = True
    checkpointer.load(cfg.MODEL.WEIGHTS)
    assert not any(p.requires_grad for p in reference.parameters())
    for encoder in (model.backbone, reference):
        for key, tensor in encoder.state_dict().items():
            assert (tensor.numpy() == state[key]).all(), key
    assert ("BGR" in caplog.text) == (author == "Caffe2")


def test_resnet_refuses_files_of_other_kinds(tmp_path):
    cfg = get_cfg_from("", ["MODEL.DEVICE", "cpu", *resnet_options()])
    path = save(published("test_vit")[1], tmp_path / "vit.pth")
    with pytest.raises(ValueError, match=r"vit\.pth: ResNet starts from detectron2's \.pkl"):
        WeightsCheckpointer(build_model(cfg)).load(path)


def test_a_pyramid_may_learn_from_random_layers_and_none_is_compared_with(tmp_path):
    plain = get_cfg_from("", ["MODEL.DEVICE", "cpu", *resnet_options()])
    zoo_file(plain, tmp_path / "R-18.pkl", "torchvision")
    state = pickle.loads((tmp_path / "R-18.pkl").read_bytes())
    state["model"] = {f"bottom_up.{key}": value for key, value in state["model"].items()}
    (tmp_path / "R-18.pkl").write_bytes(pickle.dumps(state))
    pyramid = ("MODEL.BACKBONE.NAME", "build_resnet_fpn_backbone")
    pyramid += ("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"])
    pyramid += ("MODEL.SEM_SEG_HEAD.IN_FEATURES", ["p2", "p3", "p4", "p5"])
    weights = ("MODEL.WEIGHTS", str(tmp_path / "R-18.pkl"))
    cfg = get_cfg_from("", ["MODEL.DEVICE", "cpu", *resnet_options(*pyramid, *weights)])
    WeightsCheckpointer(build_model(cfg)).load(cfg.MODEL.WEIGHTS)
    with pytest.raises(ValueError, match=r"lacks .*fpn_.*FEATURE_DISTANCE needs all"):
        build_reference_encoder(cfg)
