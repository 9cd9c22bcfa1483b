"""Pseudo-labels: upsampling, threshold, scope of the confident share, margins."""

import math

import numpy as np
import pytest
import torch

from mpcl.self_training import pseudo_label as module
from mpcl.self_training.pseudo_label import pseudo_label


def two_class_logits(probability: torch.Tensor) -> torch.Tensor:
    """(B, h, w) probability of class 1 -> (B, 2, h, w) logits with a common offset of 7."""
    return torch.stack((7 - probability.logit(), torch.full_like(probability, 7.0)), dim=1)


def bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Slow bilinear resize of (h, w) with half-pixel centres, borders repeated."""
    out = np.empty((height, width))
    for i in range(height):
        for j in range(width):
            y = np.clip((i + 0.5) * image.shape[0] / height - 0.5, 0, image.shape[0] - 1)
            x = np.clip((j + 0.5) * image.shape[1] / width - 0.5, 0, image.shape[1] - 1)
            y0, x0 = int(y), int(x)
            y1, x1 = min(y0 + 1, image.shape[0] - 1), min(x0 + 1, image.shape[1] - 1)
            top = image[y0, x0] * (1 - x + x0) + image[y0, x1] * (x - x0)
            bottom = image[y1, x0] * (1 - x + x0) + image[y1, x1] * (x - x0)
            out[i, j] = top * (1 - y + y0) + bottom * (y - y0)
    return out


def test_labels_are_the_argmax_of_upsampled_logits():
    logits = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0)) * 3
    result = pseudo_label(logits, (9, 12), threshold=0.7)
    for b in range(2):
        fine = np.stack([bilinear(channel.numpy(), 9, 12) for channel in logits[b]])
        probability = np.exp(fine) / np.exp(fine).sum(0)
        assert np.array_equal(result.label[b], probability.argmax(0))
        np.testing.assert_allclose(result.probability[b], probability.max(0), rtol=1e-4)
        assert np.array_equal(result.confident[b], probability.max(0) >= 0.7)


def test_types_and_shapes():
    result = pseudo_label(torch.randn(2, 3, 4, 4).half(), (8, 8))
    assert result.label.dtype == torch.int64
    assert result.probability.dtype == result.weight.dtype == torch.float32
    assert result.confident.dtype == torch.bool
    for tensor in (result.label, result.probability, result.weight, result.confident):
        assert tensor.shape == (2, 8, 8)
    assert result.confident_fraction.shape == ()


def test_a_probability_equal_to_the_threshold_is_confident():
    # Equal logits give exactly 1/2 in float32.
    result = pseudo_label(torch.zeros(1, 2, 3, 3), (3, 3), threshold=0.5)
    assert result.confident.all()
    assert not pseudo_label(torch.zeros(1, 2, 3, 3), (3, 3), threshold=0.5001).confident.any()


def test_the_share_is_one_scalar_for_the_batch_and_keeps_unsure_pixels():
    probability = torch.full((2, 2, 4), 0.6)
    probability[0, :, :3] = 0.99  # 6 of 16 pixels of the batch
    result = pseudo_label(two_class_logits(probability), (2, 4))
    assert torch.equal(result.weight, torch.full((2, 2, 4), 6 / 16))
    assert result.confident_fraction == 6 / 16
    assert torch.equal(result.confident, probability > 0.9)
    assert (result.label == 1).all()


def test_with_image_scope_every_image_has_its_own_share():
    probability = torch.full((2, 2, 4), 0.6)
    probability[0, :, :3] = 0.99
    result = pseudo_label(two_class_logits(probability), (2, 4), scope="image")
    assert torch.equal(result.weight[0], torch.full((2, 4), 6 / 8))
    assert torch.equal(result.weight[1], torch.zeros(2, 4))
    assert result.confident_fraction == 6 / 16


@pytest.mark.parametrize("scope", module.SCOPES)
def test_without_confident_pixels_weights_are_zero_and_labels_remain(scope):
    result = pseudo_label(two_class_logits(torch.full((2, 3, 3), 0.6)), (3, 3), scope=scope)
    assert not result.weight.any()
    assert not result.confident.any()
    assert (result.label == 1).all()


def test_margins_lose_weight_and_confidence_but_count_in_the_share():
    # DAFormer's 15 and 120 rows of a 512 crop.
    probability = torch.full((2, 512, 4), 0.6)
    probability[:, :256] = 0.99
    result = pseudo_label(
        two_class_logits(probability), (512, 4), ignore_top=15 / 512, ignore_bottom=120 / 512
    )
    expected = torch.full((2, 512, 4), 0.5)
    expected[:, :15] = 0
    expected[:, -120:] = 0
    assert torch.equal(result.weight, expected)
    assert torch.equal(result.confident, (probability > 0.9) & (expected > 0))
    assert result.confident_fraction == 0.5


@pytest.mark.parametrize(
    ("top", "bottom", "weights"),
    [
        (0.0, 0.0, [1, 1, 1, 1]),
        (0.1, 0.1, [1, 1, 1, 1]),  # less than half a row is no row
        (0.25, 0.0, [0, 1, 1, 1]),
        (0.0, 0.25, [1, 1, 1, 0]),
        (0.2, 0.45, [0, 1, 0, 0]),
    ],
)
def test_margins_are_whole_rows_and_zero_rows_are_none(top, bottom, weights):
    logits = two_class_logits(torch.full((1, 4, 1), 0.99))
    result = pseudo_label(logits, (4, 1), ignore_top=top, ignore_bottom=bottom)
    assert result.weight.flatten().tolist() == weights


def test_the_share_is_that_of_the_batches_of_all_ranks(monkeypatch):
    # This rank is confident on all pixels, the other one on none.
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "sum_over_ranks", lambda share: share + 0)
    result = pseudo_label(two_class_logits(torch.full((1, 2, 2), 0.99)), (2, 2))
    assert torch.equal(result.weight, torch.full((1, 2, 2), 0.5))


def test_undefined_logits_are_not_confident():
    logits = torch.full((1, 3, 2, 2), math.nan)
    result = pseudo_label(logits, (2, 2))
    assert not result.confident.any()
    assert not result.weight.any()
    assert ((result.label >= 0) & (result.label < 3)).all()


def test_no_gradient_reaches_the_logits():
    result = pseudo_label(torch.randn(1, 3, 2, 2, requires_grad=True), (4, 4))
    assert not result.probability.requires_grad
    assert not result.weight.requires_grad


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.5}, r"threshold must be in \[0, 1\], got 1.5"),
        ({"scope": "pixel"}, r"scope must be one of \('batch', 'image'\), got 'pixel'"),
        ({"ignore_top": -0.1}, "ignore_top and ignore_bottom"),
        ({"ignore_top": 0.5, "ignore_bottom": 0.5}, "got 0.5 and 0.5"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        pseudo_label(torch.zeros(1, 2, 2, 2), (2, 2), **change)


def test_logits_of_one_image_without_batch_are_refused():
    with pytest.raises(ValueError, match=r"logits must be \(B, C, h, w\), got \(2, 3, 3\)"):
        pseudo_label(torch.zeros(2, 3, 3), (3, 3))
