import math

import pytest
import torch
from scipy.spatial.distance import cdist

from mpcl.visualization.prototype_geometry import (
    assign_to_own_class,
    drift,
    nearest_neighbours,
    nearest_of_all,
    pairwise_distance,
    usage_share,
)


def test_drift_is_the_root_mean_square_step_of_a_channel():
    before = torch.zeros(1, 2, 4)
    after = torch.tensor([[[2.0, 2.0, 2.0, 2.0], [3.0, 0.0, 0.0, 4.0]]])
    assert drift(before, after).tolist() == [[2.0, 2.5]]  # sqrt(25 / 4)


def test_distances_are_scipys_over_the_root_of_the_channels():
    mean = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    points = mean.flatten(0, 1).double().numpy()
    expected = torch.from_numpy(cdist(points, points)) / math.sqrt(5)
    torch.testing.assert_close(pairwise_distance(mean), expected)


def test_neighbours_of_three_classes_on_a_line():
    # class 0 at 0 and 1, class 1 at 3 and 7, class 2 (not started) at 1.5 and 2
    mean = torch.tensor([[[0.0], [1.0]], [[3.0], [7.0]], [[1.5], [2.0]]])
    found = nearest_neighbours(pairwise_distance(mean), 2, torch.tensor([True, True, False]))
    assert found.sibling[:2].tolist() == [[1.0, 1.0], [4.0, 4.0]]
    assert found.other[:2].tolist() == [[3.0, 2.0], [2.0, 6.0]]
    assert found.other_class[:2].tolist() == [[1, 1], [0, 0]]


def test_a_single_prototype_has_no_neighbour():
    found = nearest_neighbours(pairwise_distance(torch.zeros(1, 1, 3)), 1, torch.tensor([True]))
    assert found.sibling.tolist() == [[math.inf]] and found.other.tolist() == [[math.inf]]


def test_shares_sum_to_one_in_classes_with_pixels():
    share = usage_share(torch.tensor([[3, 1], [0, 0]]))
    assert share.tolist() == [[0.75, 0.25], [0.0, 0.0]]


@pytest.mark.parametrize("labels", [[0, 1, 2, 1], [2, 2, 2, 2], []])
def test_pixels_go_to_the_best_prototype_of_their_own_started_class(labels):
    label = torch.tensor(labels, dtype=torch.int64)
    similarity = torch.tensor(
        [[[0.1, 0.2], [9.0, 8.0]], [[9.0, 9.0], [0.3, 0.4]], [[9.0] * 2] * 2, [[7.0] * 2] * 2]
    )[: len(labels)]
    found = assign_to_own_class(similarity, label, torch.tensor([True, False]))
    slow = [
        (n, c * 2 + int(similarity[n, c].argmax()), float(similarity[n, c].max()))
        for n, c in enumerate(labels)
        if c == 0  # class 1 has not started, 2 is ignored
    ]
    got = list(zip(found.pixel.tolist(), found.cluster.tolist(), found.similarity.tolist()))
    assert got == slow


def test_the_nearest_of_all_prototypes_ignores_classes_that_have_not_started():
    similarity = torch.tensor([[[1.0, 5.0], [2.0, 3.0], [9.0, 9.0]]]).repeat(4, 1, 1)
    similarity[1, 1, 0] = 6.0
    label = torch.tensor([0, 0, 2, 3])  # class 2 has not started, 3 is ignored
    cluster, truth = nearest_of_all(similarity, label, torch.tensor([True, True, False]))
    assert cluster.tolist() == [1, 2] and truth.tolist() == [0, 0]
