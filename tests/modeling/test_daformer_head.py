import pytest
import torch
import torch.nn.functional as F
from checkpoint_fixtures import (
    fill_golden_,
    golden_images,
    official_encoder_name,
    official_head_name,
    summary,
)
from detectron2.layers import ShapeSpec
from torch import nn

from mpcl.modeling.daformer_head import ContextAwareFusion, DAFormerHead
from mpcl.modeling.mit import MixTransformer

CHANNELS = (8, 12, 20, 24)
SHAPES = {
    f"stage{s}": ShapeSpec(channels=c, stride=4 * 2**i)
    for i, (s, c) in enumerate(zip((1, 2, 3, 4), CHANNELS))
}


def features(height: int = 16, width: int = 24) -> dict[str, torch.Tensor]:
    return {
        name: torch.randn(
            2, spec.channels, -(-height * 4 // spec.stride), -(-width * 4 // spec.stride)
        )
        for name, spec in SHAPES.items()
    }


@pytest.fixture(scope="module")
def golden():
    backbone = MixTransformer(variant="b0").eval()
    head = DAFormerHead(backbone.output_shape(), num_classes=19).eval()
    fill_golden_(backbone, "backbone.", official_encoder_name)
    fill_golden_(head, "decode_head.", official_head_name)
    with torch.no_grad():
        return head, backbone(golden_images(64, 96))


@torch.no_grad()
def test_golden_values_of_the_original_decoder(golden):
    head, levels = golden
    logits = head(levels)
    upsampled = F.interpolate(logits, size=(64, 96), mode="bilinear", align_corners=False)
    assert logits.shape == (2, 19, 16, 24)
    # Mean, standard deviation, largest magnitude, first, last; computed with the original modules.
    expected = [-0.000842331, 0.102138519, 0.437653749, 0.160602889, -0.027216519]
    assert summary(logits) == pytest.approx(expected, abs=2e-9)
    expected = [-0.000842331, 0.096452807, 0.437504164, 0.160602889, -0.027216519]
    assert summary(upsampled) == pytest.approx(expected, abs=2e-9)


@torch.no_grad()
def test_golden_values_with_batch_statistics_and_without_dropout(golden):
    head, levels = golden
    statistics = {name: buffer.clone() for name, buffer in head.named_buffers()}
    head.train().dropout.eval()
    try:
        logits = head(levels)
        expected = [-0.000175929, 0.145088391, 0.672719982, -0.111875542, -0.020067899]
        assert summary(logits) == pytest.approx(expected, abs=2e-9)
        bn = head.fusion.bottleneck.bn
        assert bn.running_mean[0].item() == pytest.approx(-0.056654944, abs=2e-9)
        assert bn.running_var[0].item() == pytest.approx(3.312880666, abs=2e-9)
    finally:
        head.eval().load_state_dict(statistics, strict=False)


def test_parameter_and_key_counts_are_the_published_ones():
    with torch.device("meta"):
        head = DAFormerHead(MixTransformer(variant="b5").output_shape(), num_classes=19)
    assert sum(p.numel() for p in head.parameters()) == 3_712_275
    assert len(head.state_dict()) == 58


def test_norms_are_plain_batch_norms_behind_bias_free_convolutions():
    fusion = ContextAwareFusion(SHAPES, channels=16)
    norms = [m for m in fusion.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) == 8
    assert all(type(m) is nn.BatchNorm2d and (m.eps, m.momentum) == (1e-5, 0.1) for m in norms)
    assert all(m.bias is None for m in fusion.modules() if isinstance(m, nn.Conv2d))


@torch.no_grad()
def test_fusion_equals_the_written_out_computation():
    """Resizes first, embeds after, and applies each layer by its functional form."""
    torch.manual_seed(0)
    fusion = ContextAwareFusion(SHAPES, channels=16, dilations=(1, 2, 3)).double().eval()
    for buffer in fusion.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    state = fusion.state_dict()
    levels = {name: x.double() for name, x in features().items()}

    def unit(x, name, **kwargs):
        x = F.conv2d(x, state[f"{name}.conv.weight"], **kwargs)
        mean, var = state[f"{name}.bn.running_mean"], state[f"{name}.bn.running_var"]
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()
        x = x * state[f"{name}.bn.weight"][:, None, None] + state[f"{name}.bn.bias"][:, None, None]
        return x.clamp(min=0)

    embedded = []
    for i, name in enumerate(SHAPES):
        x = F.interpolate(levels[name], size=(16, 24), mode="bilinear", align_corners=False)
        x = torch.einsum("bchw,dc->bdhw", x, state[f"embed.{i}.weight"])
        embedded.append(x + state[f"embed.{i}.bias"][:, None, None])
    stacked = torch.cat(embedded, 1)
    branches = [unit(stacked, "branches.0")]
    for k, dilation in ((1, 2), (2, 3)):
        x = unit(stacked, f"branches.{k}.dw", padding=dilation, dilation=dilation, groups=64)
        branches.append(unit(x, f"branches.{k}.pw"))
    expected = unit(torch.cat(branches, 1), "bottleneck", padding=1)
    torch.testing.assert_close(fusion(levels), expected)


def test_levels_are_fused_in_the_order_of_their_stride():
    shuffled = {name: SHAPES[name] for name in ("stage3", "stage1", "stage4", "stage2")}
    assert ContextAwareFusion(shuffled, channels=4).in_features == list(SHAPES)


def test_forward_is_classify_of_fuse_and_odd_sizes_work():
    head = DAFormerHead(SHAPES, num_classes=5, channels=16).eval()
    levels = features(17, 23)
    fused = head.fuse(levels)
    assert fused.shape == (2, 16, 17, 23)
    assert (fused >= 0).all()
    logits = head(levels)
    assert logits.shape == (2, 5, 17, 23)
    torch.testing.assert_close(logits, head.classify(fused))


def test_dropout_zeroes_whole_channels_and_only_in_train_mode():
    head = DAFormerHead(SHAPES, num_classes=64, channels=64, dropout=0.5)
    nn.init.dirac_(head.classifier.weight)  # logits = fused features after dropout
    ones = torch.ones(2, 64, 4, 4)
    dropped = head.train().classify(ones)
    assert torch.equal(dropped, dropped[..., :1, :1].expand_as(dropped))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    torch.testing.assert_close(head.eval().classify(ones), ones)


def test_initialisation_follows_the_original():
    torch.manual_seed(0)
    head = DAFormerHead(SHAPES, num_classes=19, channels=64)
    assert head.classifier.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert not head.classifier.bias.any()
    # Kaiming, fan-out, ReLU: std = sqrt(2 / (C_out * 3 * 3)).
    expected = (2 / (64 * 9)) ** 0.5
    assert head.fusion.bottleneck.conv.weight.std().item() == pytest.approx(expected, rel=0.02)
    # torch's default for a linear layer: uniform in +-1 / sqrt(C_in).
    bound = CHANNELS[3] ** -0.5
    weight = head.fusion.embed[3].weight
    assert 0.95 * bound < weight.abs().max().item() <= bound


def test_every_parameter_and_every_level_receives_gradients():
    head = DAFormerHead(SHAPES, num_classes=5, channels=16)
    levels = {name: x.requires_grad_() for name, x in features().items()}
    head(levels).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in head.parameters())
    assert all(x.grad.any() for x in levels.values())


def test_bfloat16_autocast_stays_close():
    head = DAFormerHead(SHAPES, num_classes=5, channels=16).eval()
    levels = features()
    with torch.no_grad():
        exact = head(levels)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = head(levels)
    assert (rounded - exact).abs().mean() < 0.05 * exact.abs().mean()


def test_nothing_to_fuse_is_refused():
    with pytest.raises(ValueError, match="input_shape"):
        ContextAwareFusion({})
    with pytest.raises(ValueError, match="dilations"):
        ContextAwareFusion(SHAPES, dilations=())
