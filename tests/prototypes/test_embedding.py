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
    cosine = torch.cosine_similarity(x, raw, dim=1)
    torch.testing.assert_close(cosine, torch.ones(2, 3), atol=1e-6, rtol=0)


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


def test_layer_leaves_the_channels_innermost_in_memory():
    assert normalize_embeddings(torch.randn(2, 16, 3, 5), "layer").movedim(1, -1).is_contiguous()


def test_an_unknown_mode_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"'batch'.*layer.*l2.*none"):
        normalize_embeddings(torch.zeros(1, 2), "batch")
