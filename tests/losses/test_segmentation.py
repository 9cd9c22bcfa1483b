"""Pixel-weighted cross-entropy: denominators, weights, upsampling, attachment to the graph."""

import math

import numpy as np
import pytest
import torch

from mpcl.losses.segmentation import pixel_cross_entropy, segmentation_loss
from mpcl.structures import Box, Detail, Outputs, View


def slow_cross_entropy(logits, label, weight) -> float:
    """Loop over the pixels of logits that already have label size."""
    total = 0.0
    for b, i, j in np.ndindex(*label.shape):
        if label[b, i, j] != 255:
            scores = logits[b, :, i, j].double()
            log_probability = scores[label[b, i, j]] - scores.exp().sum().log()
            total -= float(weight[b, i, j] * log_probability)
    return total / label.numel()


def test_cross_entropy_agrees_with_a_loop_over_the_pixels():
    torch.manual_seed(0)
    logits, weight = torch.randn(2, 4, 5, 6), torch.rand(2, 5, 6)
    label = torch.randint(0, 4, (2, 5, 6))
    label[:, 1] = 255
    expected = slow_cross_entropy(logits, label, weight)
    result = pixel_cross_entropy(logits, label, weight)
    assert result.item() == pytest.approx(expected, rel=1e-5)


def test_mean_of_the_published_recipe_counts_all_pixels():
    # Labels (i // 7) mod 20 with 19 ignored (4.956 %) and weights 0.5 + 0.5 sin(0.003 i). Uniform
    # predictions cost log 19 each, so the loss is log 19 times the mean of weight * valid.
    i = torch.arange(2 * 64 * 96)
    label = (i // 7 % 20).view(2, 64, 96)
    label[label == 19] = 255
    sine = (0.5 + 0.5 * torch.sin(0.003 * i.double())).view(2, 64, 96)
    valid = label != 255
    assert 100 * (1 - valid.double().mean()) == pytest.approx(4.956, abs=5e-4)
    for weight in (torch.ones_like(sine), sine):
        expected = math.log(19) * (weight * valid).mean().item()
        loss = pixel_cross_entropy(torch.zeros(2, 19, 16, 24), label, weight)
        assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_logits_are_upsampled_with_half_pixel_centres():
    # One row of two logits 0 and 4 becomes 0, 1, 3, 4 (weights 3/4 and 1/4 in between).
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 1] = 4
    expected = sum(math.log(1 + math.exp(-x)) for x in (0, 1, 3, 4)) / 4
    label = torch.ones(1, 1, 4, dtype=torch.int64)
    assert pixel_cross_entropy(logits, label, label).item() == pytest.approx(expected, rel=1e-6)


def test_ignored_and_weightless_pixels_and_the_weights_have_no_gradient():
    logits = torch.randn(1, 3, 1, 3, requires_grad=True)
    weight = torch.tensor([[[1.0, 0.0, 1.0]]], requires_grad=True)
    pixel_cross_entropy(logits, torch.tensor([[[2, 1, 255]]]), weight).backward()
    assert logits.grad[..., 0].abs().min() > 0
    assert not logits.grad[..., 1:].any() and weight.grad is None


def test_cross_entropy_of_ignored_labels_alone_is_an_attached_zero():
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = pixel_cross_entropy(logits, torch.full((2, 8, 8), 255), torch.ones(2, 8, 8))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_half_precision_logits_are_summed_in_single():
    logits, label = 20 * torch.randn(1, 19, 32, 32), torch.randint(0, 19, (1, 64, 64))
    weight = torch.ones(1, 64, 64)
    loss = pixel_cross_entropy(logits.bfloat16(), label, weight)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, pixel_cross_entropy(logits.bfloat16().float(), label, weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert pixel_cross_entropy(logits.bfloat16(), label, weight) == loss


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 2, 3), (2, 1, 2, 2)])
def test_weights_of_another_shape_are_refused(shape):
    label = torch.zeros(2, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="weight must have the shape of label"):
        pixel_cross_entropy(torch.zeros(2, 3, 2, 2), label, torch.ones(shape))


def test_logits_and_labels_of_different_batches_are_refused():
    label = torch.zeros(1, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="logits"):
        pixel_cross_entropy(torch.zeros(2, 3, 2, 2), label, label)


def test_detail_has_its_share_and_is_a_mean_over_its_crop():
    torch.manual_seed(0)
    label, weight = torch.randint(0, 3, (1, 8, 8)), torch.rand(1, 8, 8)
    view = View(torch.zeros(1, 3, 8, 8), label, weight, label >= 0, label >= 0)
    fused, detail, box = torch.randn(1, 3, 8, 8), torch.randn(1, 3, 4, 4), Box(2, 4, 6, 8)
    outputs = Outputs(fused, None, fused, fused, Detail(box, detail, None, detail))
    expected = 0.9 * slow_cross_entropy(fused, label, weight)
    expected += 0.1 * slow_cross_entropy(detail, label[:, 2:6, 4:], weight[:, 2:6, 4:])
    loss = segmentation_loss(outputs, view, detail_weight=0.1)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
