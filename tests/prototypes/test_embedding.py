import pytest
import torch

from mpcl.prototypes.embedding import normalize_embeddings


def test_layer_gives_zero_mean_and_unit_variance_over_channels():
    torch.manual_seed(0)
    x = normalize_embeddings(3 + 7 * torch.randn(2, 64, 5, 4), "layer")
    torch.testing.assert_close(x.mean(1), torch.zeros(2, 5, 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.square().mean(1), torch.ones(2, 5, 4))


def test_l2_keeps_the_direction_at_length_root_of_d():
    torch.manual_seed(0)
    raw = 1 + torch.randn(2, 64, 3)
    x = normalize_embeddings(raw, "l2")
    torch.testing.assert_close(x.norm(dim=1), torch.full((2, 3), 8.0))
    torch.testing.assert_close(
        torch.cosine_similarity(x, raw, dim=1), torch.ones(2, 3), atol=1e-6, rtol=0
    )


def test_none_only_converts_to_float32():
    raw = torch.randn(2, 4, 3).half()
    assert torch.equal(normalize_embeddings(raw, "none"), raw.float())


@pytest.mark.parametrize("mode", ["layer", "l2", "none"])
def test_half_precision_in_float32_out_and_finite_gradients_even_at_zero(mode):
    x = torch.randn(2, 16, 3, dtype=torch.bfloat16)
    x[0, :, 0] = 0
    x.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = normalize_embeddings(x, mode)
    assert y.dtype == torch.float32 and y.shape == x.shape
    y.square().sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("mode", ["layer", "l2"])
def test_any_channel_dimension_gives_the_same_numbers(mode):
    x = torch.randn(2, 16, 3, 5)
    last = normalize_embeddings(x.movedim(1, -1), mode, dim=-1)
    torch.testing.assert_close(last.movedim(-1, 1), normalize_embeddings(x, mode))


def test_an_unknown_mode_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'batch'.*layer.*l2.*none"):
        normalize_embeddings(torch.zeros(1, 2), "batch")


def test_layer_has_the_gradient_of_torchs_layer_norm():
    torch.manual_seed(0)
    x = (2 + 3 * torch.randn(2, 16, 5, 4, dtype=torch.float64)).float()
    x[0, :, 0, 0] = 1.0  # no spread at all
    direction = torch.randn(2, 5, 4, 16)
    gradients = []
    for norm in (
        lambda rows: normalize_embeddings(rows, "layer", dim=-1),
        lambda rows: torch.nn.functional.layer_norm(rows, (16,), eps=1e-6),
    ):
        rows = x.movedim(1, -1).clone().requires_grad_()
        gradients.append(torch.autograd.grad(norm(rows), rows, direction)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-5)


def test_layer_keeps_one_map_for_the_backward():
    x = torch.randn(2, 64, 8, 8, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = normalize_embeddings(x, "layer")
    large = [t for t in kept if t.numel() == x.numel()]
    assert [t.data_ptr() for t in large] == [y.data_ptr()]
