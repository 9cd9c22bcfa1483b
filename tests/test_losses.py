"""Losses: denominators, weights, upsampling, feature cells, attachment to the graph."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mpcl.losses import segmentation as losses
from mpcl.losses.segmentation import feature_distance, pixel_cross_entropy

THINGS = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow_cross_entropy(logits, label, weight, ignore_label=255) -> float:
    """Loop over the pixels of logits that already have label size."""
    total = 0.0
    for b, i, j in np.ndindex(label.shape):
        if label[b, i, j] != ignore_label:
            scores = logits[b, :, i, j].double()
            log_probability = scores[label[b, i, j]] - scores.exp().sum().log()
            total -= float(weight[b, i, j] * log_probability)
    return total / label.size


def test_cross_entropy_agrees_with_a_loop_over_the_pixels():
    logits, weight = randn(2, 4, 5, 6), torch.rand(2, 5, 6)
    label = np.arange(60).reshape(2, 5, 6) % 5
    label[label == 4] = 255
    for w in (None, weight):
        expected = slow_cross_entropy(logits, label, torch.ones(2, 5, 6) if w is None else w)
        result = pixel_cross_entropy(logits, torch.from_numpy(label), w)
        assert result.item() == pytest.approx(expected, rel=1e-5)


def test_mean_of_the_published_recipe_counts_all_pixels():
    # Labels (i // 7) mod 20 with 19 ignored (4.956 %) and weights 0.5 + 0.5 sin(0.003 i). Uniform
    # predictions cost log 19 each, so the loss is log 19 times the mean of weight * valid.
    i = torch.arange(2 * 64 * 96)
    label = (i // 7 % 20).view(2, 64, 96)
    label[label == 19] = 255
    weight = (0.5 + 0.5 * torch.sin(0.003 * i.double())).view(2, 64, 96)
    valid = label != 255
    assert 100 * (1 - valid.double().mean()) == pytest.approx(4.956, abs=5e-4)
    logits = torch.zeros(2, 19, 16, 24)
    expected = math.log(19) * valid.double().mean().item()
    assert pixel_cross_entropy(logits, label).item() == pytest.approx(expected, rel=1e-6)
    expected = math.log(19) * (weight * valid).mean().item()
    assert pixel_cross_entropy(logits, label, weight).item() == pytest.approx(expected, rel=1e-6)


def test_weights_scale_the_loss():
    logits, label = randn(1, 3, 4, 4), torch.randint(0, 3, (1, 4, 4))
    full = pixel_cross_entropy(logits, label)
    quarter = pixel_cross_entropy(logits, label, torch.full((1, 4, 4), 0.25))
    torch.testing.assert_close(quarter, full / 4)


def test_logits_are_upsampled_with_half_pixel_centres():
    # One row of two logits 0 and 4 becomes 0, 1, 3, 4 (weights 3/4 and 1/4 in between).
    logits = torch.zeros(1, 2, 1, 2)
    logits[0, 1, 0, 1] = 4
    expected = sum(math.log(1 + math.exp(-x)) for x in (0, 1, 3, 4)) / 4
    loss = pixel_cross_entropy(logits, torch.ones(1, 1, 4, dtype=torch.int64))
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_ignored_and_weightless_pixels_have_no_gradient():
    logits = randn(1, 3, 1, 3).requires_grad_()
    weight = torch.tensor([[[1.0, 0.0, 1.0]]])
    pixel_cross_entropy(logits, torch.tensor([[[2, 1, 255]]]), weight).backward()
    assert logits.grad[..., 0].abs().min() > 0
    assert not logits.grad[..., 1:].any()


def test_cross_entropy_of_ignored_labels_alone_is_an_attached_zero():
    logits = randn(2, 3, 4, 4).requires_grad_()
    loss = pixel_cross_entropy(logits, torch.full((2, 8, 8), 255))
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_another_ignore_label_is_respected():
    label = torch.tensor([[[0, 1]]])
    loss = pixel_cross_entropy(torch.zeros(1, 2, 1, 2), label, ignore_label=0)
    assert loss.item() == pytest.approx(math.log(2) / 2)


def test_half_precision_logits_are_summed_in_single():
    logits, label = 20 * randn(1, 19, 32, 32), torch.randint(0, 19, (1, 64, 64))
    loss = pixel_cross_entropy(logits.bfloat16(), label)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, pixel_cross_entropy(logits.bfloat16().float(), label))
    with torch.autocast("cpu", torch.bfloat16):
        assert pixel_cross_entropy(logits.bfloat16(), label) == loss


def test_no_gradient_reaches_the_weights():
    weight = torch.ones(1, 2, 2, requires_grad=True)
    logits = randn(1, 3, 2, 2).requires_grad_()
    pixel_cross_entropy(logits, torch.zeros(1, 2, 2, dtype=torch.int64), weight).backward()
    assert weight.grad is None


@pytest.mark.parametrize("shape", [(1, 2, 2), (2, 2, 3), (2, 1, 2, 2)])
def test_weights_of_another_shape_are_refused(shape):
    label = torch.zeros(2, 2, 2, dtype=torch.int64)
    with pytest.raises(ValueError, match="weight must have the shape of label"):
        pixel_cross_entropy(torch.zeros(2, 3, 2, 2), label, torch.ones(shape))


def test_logits_and_labels_of_different_batches_are_refused():
    with pytest.raises(ValueError, match="logits"):
        pixel_cross_entropy(torch.zeros(2, 3, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))


def slow_feature_distance(student, reference, label, side, min_ratio=0.75) -> float:
    """Loop over the cells; pixels outside the image count as ignored."""
    distances = []
    for b, i, j in np.ndindex(student.shape[0], *student.shape[2:]):
        cell = label[b, i * side : (i + 1) * side, j * side : (j + 1) * side].flatten()
        counts = np.bincount(cell.clip(max=19), minlength=20)
        counts[19] += side**2 - len(cell)
        if counts.argmax() in THINGS and counts.max() >= min_ratio * side**2:
            difference = (student - reference)[b, :, i, j]
            distances.append(math.sqrt(sum(x * x for x in difference.tolist())))
    assert distances
    return sum(distances) / len(distances)


@pytest.mark.parametrize(
    ("size", "grid", "side"),
    [
        ((64, 96), (2, 3), 32),
        ((128, 128), (2, 2), 64),
        ((360, 480), (12, 15), 32),  # 11.25 rows of cells: the last is cut
        ((360, 490), (12, 16), 31),
        ((40, 64), (1, 2), 40),
    ],
)
def test_feature_distance_agrees_with_a_loop_over_the_cells(size, grid, side):
    generator = np.random.default_rng(0)
    coarse = generator.choice([2, 6, 13, 18, 255], size=(2, *grid))
    label = coarse.repeat(side, axis=1).repeat(side, axis=2)[:, : size[0], : size[1]]
    noise = generator.random(label.shape) < generator.choice([0.2, 0.25, 0.3], size=label.shape)
    label = np.where(noise, 0, label)
    label[:, :side, :side] = 13
    student, reference = randn(2, 8, *grid), randn(2, 8, *grid, seed=1)
    expected = slow_feature_distance(student, reference, label, side)
    result = feature_distance(student, reference, torch.from_numpy(label), THINGS, 19)
    assert result.item() == pytest.approx(expected, rel=1e-5)


def one_cell(share: int) -> torch.Tensor:
    """(1, 4, 4) label of which ``share`` of 16 pixels are class 13, the others ignored."""
    label = torch.full((16,), 255)
    label[:share] = 13
    return label.view(1, 4, 4)


@pytest.mark.parametrize(("share", "distance"), [(16, 5.0), (12, 5.0), (11, 0.0), (0, 0.0)])
def test_a_ratio_equal_to_the_minimum_passes(share, distance):
    student = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)  # norm 5
    result = feature_distance(student, torch.zeros(1, 2, 1, 1), one_cell(share), THINGS, 19)
    assert result.item() == distance


def test_cells_dominated_by_other_classes_are_dropped():
    label = torch.full((1, 4, 8), 2)
    label[..., 4:] = 13
    student = torch.tensor([[3.0, 1.0], [4.0, 0.0]]).view(1, 2, 1, 2)
    result = feature_distance(student, torch.zeros(1, 2, 1, 2), label, THINGS, 19)
    assert result.item() == 1.0


def test_cells_mostly_outside_the_image_are_dropped():
    # 6 x 8 pixels under 2 x 2 cells of 4 x 4: half of each lower cell lies outside.
    student = torch.tensor([1.0, 3.0, 7.0, 7.0]).view(1, 1, 2, 2)
    label = torch.zeros(1, 6, 8, dtype=torch.int64)
    assert feature_distance(student, torch.zeros(1, 1, 2, 2), label, (0,), 19).item() == 2.0


def test_distance_without_a_selected_cell_is_an_attached_zero():
    student = randn(2, 4, 2, 2).requires_grad_()
    loss = feature_distance(student, randn(2, 4, 2, 2), torch.full((2, 8, 8), 255), THINGS, 19)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_distance_without_classes_is_zero():
    loss = feature_distance(randn(1, 2, 1, 1), randn(1, 2, 1, 1, seed=1), one_cell(16), (), 19)
    assert loss.item() == 0


def test_distance_pulls_the_student_alone_and_only_where_selected():
    label = torch.full((1, 4, 8), 13)
    label[..., 4:] = 2
    student = randn(1, 3, 1, 2).requires_grad_()
    reference = randn(1, 3, 1, 2, seed=1).requires_grad_()
    feature_distance(student, reference, label, THINGS, 19).backward()
    # The gradient of a norm is the unit vector along the difference.
    direction = F.normalize((student - reference).detach(), dim=1)
    torch.testing.assert_close(student.grad[..., 0], direction[..., 0])
    assert not student.grad[..., 1].any()
    assert reference.grad is None


def test_equal_features_have_no_gradient_rather_than_nan():
    student = randn(1, 3, 1, 1).requires_grad_()
    feature_distance(student, student.detach(), one_cell(16), THINGS, 19).backward()
    assert torch.equal(student.grad, torch.zeros_like(student))


def test_ranks_average_to_the_mean_over_all_their_cells(monkeypatch):
    # This rank selects one cell, the other three; what the ranks return is averaged by DDP.
    label = torch.full((1, 4, 4), 13)
    monkeypatch.setattr(losses, "world_size", lambda: 2)
    monkeypatch.setattr(losses, "sum_over_ranks", lambda count: count + 3)
    student = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    result = feature_distance(student, torch.zeros(1, 2, 1, 1), label, THINGS, 19)
    assert result.item() / 2 == pytest.approx(5.0 / 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": torch.zeros(1, 2, 1, 2)}, "student and reference"),
        ({"label": torch.zeros(2, 4, 4, dtype=torch.int64)}, r"label must be \(1, H, W\)"),
        ({"classes": (19,)}, r"classes must be in \[0, 19\), got \[19\]"),
        ({"min_ratio": 0.0}, r"min_ratio must be in \(0, 1\], got 0.0"),
    ],
)
def test_bad_arguments_of_the_distance_are_refused(change, message):
    arguments = {
        "student": torch.zeros(1, 2, 1, 1),
        "reference": torch.zeros(1, 2, 1, 1),
        "label": torch.zeros(1, 4, 4, dtype=torch.int64),
        "classes": THINGS,
        "num_classes": 19,
    }
    with pytest.raises(ValueError, match=message):
        feature_distance(**{**arguments, **change})
