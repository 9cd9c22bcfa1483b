import pytest
import torch
from checkpoint_fixtures import fill_golden_, golden_images, official_encoder_name, summary
from torch import nn
from transformers import SegformerConfig, SegformerModel

from mpcl.checkpoint.encoder_names import convert
from mpcl.modeling.mit import VARIANTS, MixTransformer

PARAMETERS = {
    "b0": (176, 3_319_392),
    "b1": (176, 13_151_424),
    "b2": (332, 24_196_288),
    "b3": (572, 44_072_128),
    "b4": (832, 60_842_688),
    "b5": (1052, 81_443_008),
}


def hugging_face(variant: str) -> SegformerModel:
    """The independent implementation, with random weights and the original's two epsilons."""
    channels, depths = VARIANTS[variant]
    config = SegformerConfig(hidden_sizes=channels, depths=depths, attn_implementation="eager")
    model = SegformerModel(config).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            behind_convolution = "patch_embeddings" in name or "sequence_reduction" in name
            module.eps = 1e-5 if behind_convolution else 1e-6
    return model


def ours_like(reference: SegformerModel, variant: str) -> MixTransformer:
    with torch.device("meta"):  # no time for an initialisation that is overwritten
        model = MixTransformer(variant=variant).eval()
    model.load_state_dict(convert(reference.state_dict()).state, assign=True)
    return model.requires_grad_()


@torch.no_grad()
def relative_errors(model: MixTransformer, reference: SegformerModel, images: torch.Tensor):
    expected = reference(images, output_hidden_states=True).hidden_states
    found = model(images)
    assert list(found) == ["stage1", "stage2", "stage3", "stage4"]
    assert [f.shape for f in found.values()] == [e.shape for e in expected]
    return [((f - e).abs().max() / e.abs().max()).item() for f, e in zip(found.values(), expected)]


@pytest.fixture(scope="module")
def b0():
    reference = hugging_face("b0")
    return ours_like(reference, "b0"), reference


@pytest.mark.parametrize("size", [(64, 64), (70, 101), (33, 40)])
def test_b0_equals_the_hugging_face_encoder_at_any_size(b0, size):
    model, reference = b0
    assert max(relative_errors(model, reference, torch.randn(2, 3, *size))) < 1e-5


def test_the_papers_variant_equals_the_hugging_face_encoder():
    reference = hugging_face("b5")
    errors = relative_errors(ours_like(reference, "b5"), reference, torch.randn(1, 3, 70, 101))
    assert max(errors) < 1e-5


def test_swapped_keys_and_values_are_noticed(b0):
    model, reference = b0
    swapped = MixTransformer(variant="b0").eval()
    state = model.state_dict()
    for name in state:
        if ".attn.kv." in name:
            state[name] = state[name].roll(len(state[name]) // 2, 0)
    swapped.load_state_dict(state)
    assert min(relative_errors(swapped, reference, torch.randn(1, 3, 64, 64))) > 1e-3


def test_gradients_equal_those_of_the_hugging_face_encoder(b0):
    model, reference = b0
    images = torch.randn(2, 3, 64, 80)
    model.zero_grad()
    reference.zero_grad()
    sum(f.square().mean() for f in model(images).values()).backward()
    hidden = reference(images, output_hidden_states=True).hidden_states
    sum(f.square().mean() for f in hidden).backward()
    expected = convert({n: p.grad for n, p in reference.named_parameters()}).state
    for name, parameter in model.named_parameters():
        scale = expected[name].abs().max() + 1e-6
        assert ((parameter.grad - expected[name]).abs().max() / scale).item() < 1e-3, name


@pytest.mark.parametrize("variant", PARAMETERS)
def test_parameter_counts_are_the_published_ones(variant):
    with torch.device("meta"):
        state = MixTransformer(variant=variant).state_dict()
    assert (len(state), sum(t.numel() for t in state.values())) == PARAMETERS[variant]
    assert not any(name.startswith("stages.3.") and ".attn.sr." in name for name in state)


def test_golden_values_of_the_original_encoder():
    model = fill_golden_(MixTransformer(variant="b0").eval(), "backbone.", official_encoder_name)
    with torch.no_grad():
        features = model(golden_images(64, 96))
    # Mean, standard deviation, largest magnitude, first, last; computed with the original modules.
    expected = {
        "stage1": [-0.014418747, 1.020112397, 2.148160877, -0.777451101, 1.409198096],
        "stage2": [-0.044096849, 1.033089302, 2.790766499, -0.482966446, -2.668957071],
        "stage3": [-0.028328245, 1.020614027, 2.868594806, -0.834132559, 0.211098937],
        "stage4": [-0.017188389, 1.015733180, 3.064615497, -0.785738828, 0.897567086],
    }
    for name, numbers in expected.items():
        assert summary(features[name]) == pytest.approx(numbers, abs=2e-9), name


def test_layer_norm_epsilons_are_those_of_the_released_weights():
    with torch.device("meta"):
        model = MixTransformer(variant="b5")
    eps = {n: m.eps for n, m in model.named_modules() if isinstance(m, nn.LayerNorm)}
    loose = {n for n, e in eps.items() if e == 1e-5}
    assert loose == {n for n in eps if n.endswith(("patch_embed.norm", "attn.norm"))}
    assert len(loose) == 4 + 49  # four patch embeddings, 3 + 6 + 40 reductions
    assert all(e == 1e-6 for n, e in eps.items() if n not in loose)


def test_drop_path_grows_linearly_over_all_blocks_and_keeps_the_mean():
    model = MixTransformer(variant="b0", drop_path=0.4).train()  # of 8 blocks
    factors = torch.cat(model._draw_kept(4000)).flatten(1)
    dropped = (factors == 0).float().mean(1)
    expected = torch.tensor([0.4 * j / 7 for j in range(8)])
    torch.testing.assert_close(dropped, expected, rtol=0, atol=0.03)
    torch.testing.assert_close(factors.mean(1), torch.ones(8), rtol=0, atol=0.05)


def test_drop_path_drops_whole_images_in_train_mode_only():
    torch.manual_seed(0)
    model = MixTransformer(variant="b0", drop_path=0.5)
    images = torch.randn(1, 3, 32, 32).expand(8, -1, -1, -1)
    with torch.no_grad():
        trained, evaluated = model.train()(images)["stage4"], model.eval()(images)["stage4"]
    assert len(trained.flatten(1).unique(dim=0)) > 1
    torch.testing.assert_close(evaluated, evaluated[:1].expand_as(evaluated))


def test_initialisation_follows_the_original():
    torch.manual_seed(0)
    model = MixTransformer(variant="b0")
    modules = dict(model.named_modules())
    linear = modules["stages.3.blocks.0.ffn.fc1"]
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02)
    # Depth-wise 3x3: fan-out = 9 * C / C = 9. Patch embedding 2: fan-out = 9 * 64.
    assert modules["stages.3.blocks.0.ffn.dwconv"].weight.std().item() == pytest.approx(
        (2 / 9) ** 0.5, rel=0.05
    )
    assert modules["stages.1.patch_embed.proj"].weight.std().item() == pytest.approx(
        (2 / (9 * 64)) ** 0.5, rel=0.05
    )
    biases = [p for name, p in model.named_parameters() if name.endswith("bias")]
    assert all(not bias.any() for bias in biases)
    norms = [m for m in model.modules() if isinstance(m, nn.LayerNorm)]
    assert all((norm.weight == 1).all() for norm in norms)


def test_bfloat16_autocast_stays_close_and_trains(b0):
    model, _ = b0
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        exact = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model(images)
        model.zero_grad()
        sum(f.float().square().mean() for f in rounded.values()).backward()
    for name, feature in exact.items():
        assert (rounded[name] - feature).abs().mean() < 0.03 * feature.abs().mean()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_output_shape_describes_the_features():
    model = MixTransformer(variant="b0")
    assert model.size_divisibility == 0
    with torch.no_grad():
        features = model(torch.randn(1, 3, 64, 96))
    shapes = model.output_shape()
    assert [spec.stride for spec in shapes.values()] == [4, 8, 16, 32]
    for name, spec in shapes.items():
        assert features[name].shape == (1, spec.channels, 64 // spec.stride, 96 // spec.stride)
        assert features[name].is_contiguous(memory_format=torch.channels_last)


def test_unknown_variants_are_refused():
    with pytest.raises(ValueError, match=r"'b7'.*b0, b1, b2, b3, b4, b5"):
        MixTransformer(variant="b7")


def test_blocks_computed_again_in_the_backward_give_the_same_gradients():
    images = torch.randn(2, 3, 64, 96)
    gradients = []
    for checkpoint in (False, True):
        torch.manual_seed(0)
        encoder = MixTransformer(variant="b0", drop_path=0.5, checkpoint=checkpoint).train()
        torch.manual_seed(1)  # of the dropped branches
        sum(level.square().mean() for level in encoder(images).values()).backward()
        gradients.append([parameter.grad for parameter in encoder.parameters()])
    for plain, again in zip(*gradients):
        torch.testing.assert_close(again, plain)


def test_blocks_computed_again_need_less_memory():
    images, peaks = torch.randn(1, 3, 128, 128), []
    for checkpoint in (False, True):
        encoder = MixTransformer(variant="b2", checkpoint=checkpoint).train()
        kept = [0]

        def keep(tensor, kept=kept):
            kept[0] += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            encoder(images)
        peaks.append(kept[0])
    assert peaks[1] < 0.3 * peaks[0]
