"""Feature distance: feature cells, selection, attachment to the graph."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mpcl.losses import feature_distance as module
from mpcl.losses.feature_distance import feature_distance

THINGS = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


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


def test_cells_mostly_outside_the_image_are_dropped():
    # 6 x 8 pixels under 2 x 2 cells of 4 x 4: half of each lower cell lies outside.
    student = torch.tensor([1.0, 3.0, 7.0, 7.0]).view(1, 1, 2, 2)
    label = torch.zeros(1, 6, 8, dtype=torch.int64)
    assert feature_distance(student, torch.zeros(1, 1, 2, 2), label, (0,), 19).item() == 2.0


@pytest.mark.parametrize(("label", "classes"), [(255, THINGS), (13, ())])
def test_distance_without_a_selected_cell_is_an_attached_zero(label, classes):
    student = randn(2, 4, 2, 2).requires_grad_()
    label = torch.full((2, 8, 8), label)
    loss = feature_distance(student, randn(2, 4, 2, 2, seed=1), label, classes, 19)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(student.grad, torch.zeros_like(student))


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
    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "sum_over_ranks", lambda count: count + 3)
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
