import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans as ReferenceKMeans
from sklearn.datasets import make_blobs

from mpcl.prototypes import numerics
from mpcl.prototypes.kmeans import kmeans, random_prototypes

C, S, D, K = 3, 300, 16, 5


def blobs(spread):
    """(C, S, D) points of five blobs a class, with some invalid ones that would ruin any mean."""
    points = np.stack(
        [make_blobs(S, D, centers=K, cluster_std=spread, random_state=c)[0] for c in range(C)]
    )
    points = torch.tensor(points / 6, dtype=torch.float32)
    valid = torch.rand(C, S, generator=torch.Generator().manual_seed(0)) < 0.9
    points[~valid] = float("nan")
    return points, valid


@pytest.mark.parametrize("spread", [0.5, 4.0])
@pytest.mark.parametrize("num_clusters", [1, 5, 12])
def test_inertia_is_within_two_percent_of_scikit_learn(spread, num_clusters):
    points, valid = blobs(spread)
    result = kmeans(points, valid, num_clusters, seed=1)
    for c in range(C):
        reference = ReferenceKMeans(num_clusters, n_init=10, random_state=0)
        reference.fit(points[c, valid[c]].numpy())
        assert result.inertia[c] <= 1.02 * reference.inertia_ + 1e-4


def test_count_variance_and_inertia_belong_to_the_means():
    points, valid = blobs(0.5)
    result = kmeans(points, valid, K, seed=1)
    assert torch.equal(result.count.sum(1).long(), valid.sum(1))
    for c in range(C):
        data = points[c, valid[c]]
        distance = torch.cdist(data, result.mean[c])
        nearest = distance.argmin(1)
        torch.testing.assert_close(
            result.inertia[c], distance.min(1).values.square().sum(), rtol=1e-4, atol=1e-4
        )
        for k in range(K):
            members = data[nearest == k]
            assert result.count[c, k] == len(members) >= 20
            torch.testing.assert_close(result.mean[c, k], members.mean(0), rtol=1e-4, atol=1e-4)
            expected = members.var(0, correction=0)
            torch.testing.assert_close(result.variance[c, k], expected, rtol=1e-3, atol=1e-4)


def test_a_cluster_of_few_points_takes_the_pooled_variance():
    generator = torch.Generator().manual_seed(0)
    large = torch.randn(60, D, generator=generator)
    small = 50 + 0.01 * torch.randn(19, D, generator=generator)
    points = torch.cat([large, small]).unsqueeze(0)
    result = kmeans(points, torch.ones(1, 79, dtype=torch.bool), 2, seed=0)
    few = result.count[0].argmin()
    within = (large - large.mean(0)).square().sum(0) + (small - small.mean(0)).square().sum(0)
    assert result.count[0, few] == 19
    torch.testing.assert_close(result.variance[0, few], within / 79, rtol=1e-2, atol=1e-3)
    torch.testing.assert_close(
        result.variance[0, 1 - few], large.var(0, correction=0), rtol=1e-3, atol=1e-3
    )


def test_equal_seeds_agree_and_chunks_do_not_matter(monkeypatch):
    points, valid = blobs(2.0)
    whole = kmeans(points, valid, K, seed=3)
    assert torch.equal(kmeans(points, valid, K, seed=3).mean, whole.mean)
    monkeypatch.setattr(numerics, "_CHUNK_ELEMENTS", 37 * C * D)
    for ours, reference in zip(kmeans(points, valid, K, seed=3), whole, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-3, atol=1e-3)


def test_half_precision_points_are_computed_in_float32():
    points, valid = blobs(0.5)
    half = points.nan_to_num().half()
    result = kmeans(half, valid, K, seed=0)
    reference = kmeans(half.float(), valid, K, seed=0)
    assert result.mean.dtype == torch.float32
    torch.testing.assert_close(result.mean, reference.mean)


@pytest.mark.parametrize("num_points", [0, 1, 3])
def test_fewer_points_than_clusters_is_defined_and_leaves_no_twins(num_points):
    points = torch.randn(C, 10, D)
    valid = torch.arange(10).expand(C, -1) < num_points
    result = kmeans(points, valid, K, seed=0)
    assert all(value.isfinite().all() for value in result)
    assert (result.variance >= 0).all()
    assert torch.equal(result.count.sum(1), torch.full((C,), float(num_points)))
    for c in range(C):
        distance = torch.cdist(result.mean[c], result.mean[c]) + 9 * torch.eye(K)
        assert distance.min() > 1e-3
        if num_points:
            # Every prototype starts close to a point that exists.
            assert torch.cdist(result.mean[c], points[c, :num_points]).min(1).values.max() < 1


def test_identical_points_give_prototypes_that_can_part():
    points = torch.ones(1, 50, D)
    result = kmeans(points, torch.ones(1, 50, dtype=torch.bool), K, seed=0)
    distance = torch.cdist(result.mean[0], result.mean[0]) + 9 * torch.eye(K)
    assert distance.min() > 1e-3 and (result.mean - 1).abs().max() < 0.1
    assert result.variance.abs().max() < 1e-4


def test_an_absent_class_does_not_change_the_others():
    points, valid = blobs(0.5)
    absent = valid.clone()
    absent[1] = False
    with_all, without = kmeans(points, valid, K, seed=0), kmeans(points, absent, K, seed=0)
    for c in (0, 2):
        torch.testing.assert_close(without.inertia[c], with_all.inertia[c], rtol=1e-3, atol=1e-3)


def test_bad_arguments_are_named():
    points, valid = blobs(0.5)
    with pytest.raises(ValueError, match="num_clusters is 0"):
        kmeans(points, valid, 0, seed=0)
    with pytest.raises(ValueError, match="S > 0"):
        kmeans(points[:, :0], valid[:, :0], 2, seed=0)


def test_random_prototypes_have_unit_scale_and_follow_the_seed():
    mean, variance = random_prototypes(19, 5, 256, seed=0)
    assert mean.shape == variance.shape == (19, 5, 256)
    assert mean.std().item() == pytest.approx(1, abs=0.02) and (variance == 1).all()
    assert torch.equal(mean, random_prototypes(19, 5, 256, seed=0)[0])
    assert not torch.equal(mean, random_prototypes(19, 5, 256, seed=1)[0])
