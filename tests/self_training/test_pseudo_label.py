"""Pseudo-labels: upsampling, threshold, scope of the confident share, margins."""

import math

import numpy as np
import pytest
import torch

from mpcl.self_training import pseudo_label as module
from mpcl.self_training.pseudo_label import SCOPES, PseudoLabels, most_probable
from mpcl.structures import View


def label(logits, size, valid=None, shown=None, **settings) -> tuple[View, torch.Tensor]:
    """The labels of images of a size, all of which is shown and valid unless said otherwise."""
    everywhere = torch.ones(len(logits), *size, dtype=torch.bool)
    shown = everywhere if shown is None else shown
    valid = shown if valid is None else valid
    target = View.of_target(torch.zeros(len(logits), 3, *size), shown, valid)
    return PseudoLabels(**settings)(logits, target)


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
    view, _ = label(logits, (9, 12), threshold=0.7)
    probability, also = most_probable(logits.double(), (9, 12))
    assert torch.equal(view.label, also) and probability.dtype == torch.float32
    for b in range(2):
        fine = np.stack([bilinear(channel.numpy(), 9, 12) for channel in logits[b]])
        expected = np.exp(fine) / np.exp(fine).sum(0)
        assert np.array_equal(view.label[b], expected.argmax(0))
        np.testing.assert_allclose(probability[b], expected.max(0), rtol=1e-4)
        assert np.array_equal(view.trusted[b], expected.max(0) >= 0.7)


def test_the_target_is_kept_and_what_is_added_has_types_and_no_gradient():
    valid = torch.ones(2, 8, 8, dtype=torch.bool)
    target = View.of_target(torch.randn(2, 3, 8, 8), valid, valid)
    view, fraction = PseudoLabels()(torch.randn(2, 3, 4, 4, requires_grad=True).half(), target)
    assert view.images is target.images and not view.from_source.any()
    assert (target.label == 255).all() and target.trusted.all()  # not written to
    types = (view.label.dtype, view.weight.dtype, view.trusted.dtype)
    assert types == (torch.int64, torch.float32, torch.bool)
    assert view.label.shape == view.weight.shape == view.trusted.shape == (2, 8, 8)
    assert fraction.shape == () and not view.weight.requires_grad


def test_a_probability_equal_to_the_threshold_is_confident():
    # Equal logits give exactly 1/2 in float32.
    logits = torch.zeros(1, 2, 3, 3)
    assert label(logits, (3, 3), threshold=0.5)[0].trusted.all()
    assert not label(logits, (3, 3), threshold=0.5001)[0].trusted.any()


@pytest.mark.parametrize(("scope", "shares"), [("batch", (6 / 16, 6 / 16)), ("image", (6 / 8, 0))])
def test_the_confident_share_weighs_all_pixels_of_its_scope(scope, shares):
    probability = torch.full((2, 2, 4), 0.6)
    probability[0, :, :3] = 0.99  # 6 of 16 pixels of the batch
    view, fraction = label(two_class_logits(probability), (2, 4), scope=scope)
    assert torch.equal(view.weight, torch.tensor(shares).view(2, 1, 1).expand(2, 2, 4))
    assert fraction == 6 / 16
    assert torch.equal(view.trusted, probability > 0.9)
    assert (view.label == 1).all()


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("value", [0.6, math.nan])
def test_without_confident_pixels_weights_are_zero_and_labels_remain(scope, value):
    view, _ = label(two_class_logits(torch.full((2, 3, 3), value)), (3, 3), scope=scope)
    assert not view.weight.any() and not view.trusted.any()
    assert ((view.label >= 0) & (view.label < 2)).all()


def test_margins_lose_weight_and_trust_but_count_in_the_share():
    probability = torch.full((2, 512, 4), 0.6)
    probability[:, :256] = 0.99
    valid = torch.ones(2, 512, 4, dtype=torch.bool)
    valid[1, :, 0] = valid[0, -120:] = False
    view, fraction = label(two_class_logits(probability), (512, 4), valid)
    assert torch.equal(view.weight, 0.5 * valid)
    assert torch.equal(view.trusted, (probability > 0.9) & valid)
    assert fraction == 0.5


def test_the_share_is_that_of_the_batches_of_all_ranks(monkeypatch):
    # This rank is confident on all of its 4 pixels, the other one on 2 of 12.
    monkeypatch.setattr(module, "sum_over_ranks", lambda own: own + torch.tensor([2.0, 12.0]))
    view, fraction = label(two_class_logits(torch.full((1, 2, 2), 0.99)), (2, 2))
    assert torch.equal(view.weight, torch.full((1, 2, 2), 6 / 16)) and fraction == 6 / 16


@pytest.mark.parametrize(
    ("scope", "shares"), [("batch", (6 / 12, 6 / 12)), ("image", (2 / 4, 4 / 8))]
)
def test_what_shows_nothing_counts_neither_as_confident_nor_as_unsure(scope, shares):
    probability = torch.full((2, 2, 4), 0.6)
    probability[0, :, 1:] = probability[1, :, 2:] = 0.99
    shown = torch.ones(2, 2, 4, dtype=torch.bool)
    shown[0, :, 2:] = False  # half of the first image is padding, of which the teacher is sure
    view, fraction = label(two_class_logits(probability), (2, 4), shown=shown, scope=scope)
    assert torch.equal(view.weight, torch.tensor(shares).view(2, 1, 1) * shown)
    assert torch.equal(view.trusted, (probability > 0.9) & shown) and fraction == 6 / 12
    nothing, fraction = label(two_class_logits(probability), (2, 4), shown=shown & False)
    assert not nothing.weight.any() and not nothing.trusted.any() and fraction == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threshold": 1.5}, r"threshold must be in \[0, 1\], got 1.5"),
        ({"scope": "pixel"}, r"scope must be one of \('batch', 'image'\), got 'pixel'"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        PseudoLabels(**change)


def test_logits_of_one_image_without_batch_are_refused():
    with pytest.raises(ValueError, match=r"logits must be \(B, C, h, w\), got \(2, 3, 3\)"):
        label(torch.zeros(2, 3, 3), (3, 3))
