import math

import pytest
import torch

from mpcl.prototypes.bank import FeatureBank
from mpcl.prototypes.centroid import CentroidPrototypes, usage_entropy
from mpcl.prototypes.gaussian import GaussianPrototypes

C, K, D, N = 4, 3, 8, 50
NONE = C * K


def started(kind=CentroidPrototypes, momentum=0.9, classes=None, **options):
    torch.manual_seed(0)
    prototypes = kind(C, K, D, momentum=momentum, **options)
    classes = torch.ones(C, dtype=torch.bool) if classes is None else torch.tensor(classes)
    prototypes.start_(classes, torch.randn(C, K, D), 0.2 + torch.rand(C, K, D))
    return prototypes


@pytest.mark.parametrize(("scale", "divisor"), [("mean", D), ("sum", 1)])
@pytest.mark.parametrize(("distance", "power"), [("squared", 2), ("euclidean", 1)])
def test_similarity_equals_the_written_out_distance(scale, divisor, distance, power):
    prototypes = started(distance=distance, scale=scale)
    points = torch.randn(N, D)
    difference = points.double()[:, None, None] - prototypes.mean.double()
    expected = -((difference.norm(dim=-1) / divisor**0.5) ** power)
    torch.testing.assert_close(
        prototypes.similarity(points).double(), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])
def test_own_similarity_is_the_diagonal_of_similarity(kind):
    prototypes = started(kind)
    points = torch.randn(C, 6, D)
    everything = prototypes.similarity(points.flatten(0, 1)).view(C, 6, C, K)
    own = torch.stack([everything[c, :, c] for c in range(C)])
    torch.testing.assert_close(prototypes.class_similarity(points), own)


@pytest.mark.parametrize("distance", ["squared", "euclidean"])
def test_gradients_reach_the_embeddings_only_and_are_finite_on_a_prototype(distance):
    prototypes = started(distance=distance)
    points = torch.randn(N, D)
    points[0] = prototypes.mean[1, 2]
    points.requires_grad_()
    prototypes.similarity(points).sum().backward()
    assert points.grad.isfinite().all() and points.grad.abs().sum() > 0
    assert not list(prototypes.parameters())
    assert all(not buffer.requires_grad for buffer in prototypes.buffers())


@pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])
def test_similarity_is_float32_under_autocast_and_leaves_the_settings_alone(kind):
    prototypes = started(kind)
    points = torch.randn(N, D)
    expected = prototypes.similarity(points)
    flags = torch.backends.cuda.matmul
    before = flags.allow_tf32
    try:
        flags.allow_tf32 = True
        with torch.autocast("cpu", dtype=torch.bfloat16):
            actual = prototypes.similarity(points)
            assert (points @ points.t()).dtype == torch.bfloat16
        assert flags.allow_tf32
    finally:
        flags.allow_tf32 = before
    assert actual.dtype == torch.float32
    assert torch.equal(actual, expected)


def test_update_equals_a_slow_loop():
    prototypes = started(momentum=0.7, classes=[True, True, False, True])
    points, cluster = torch.randn(N, D), torch.randint(0, 2 * K, (N,))
    cluster[:5] = NONE
    expected = prototypes.mean.clone()
    for c in range(2):
        for k in range(K):
            members = points[cluster == c * K + k]
            expected[c, k] = 0.7 * expected[c, k] + 0.3 * members.mean(0)
    prototypes.update_(points, cluster)
    torch.testing.assert_close(prototypes.mean, expected)


def test_repeated_updates_follow_the_closed_form_of_a_moving_average():
    # Towards a constant x: p_n = x + alpha^n (p_0 - x).
    prototypes = started(momentum=0.9)
    start, x = prototypes.mean.clone(), torch.randn(C, K, D)
    for _ in range(7):
        prototypes.update_(x.flatten(0, 1), torch.arange(NONE))
    torch.testing.assert_close(prototypes.mean, x + 0.9**7 * (start - x))


@pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])
def test_prototypes_without_pixels_and_unstarted_classes_keep_their_value_bit_by_bit(kind):
    prototypes = started(kind, classes=[True, True, False, True])
    before = {name: buffer.clone() for name, buffer in prototypes.named_buffers()}
    cluster = torch.full((N,), NONE)
    cluster[:20] = 2 * K + 1  # a class that has not started
    cluster[20:30] = 0
    prototypes.update_(torch.randn(N, D), cluster)
    changed = (prototypes.mean != before["mean"]).any(-1)
    expected = torch.zeros(C, K, dtype=torch.bool)
    expected[0, 0] = True
    assert torch.equal(changed, expected)
    if kind is GaussianPrototypes:
        assert torch.equal((prototypes.variance != before["variance"]).any(-1), expected)


@pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_embeddings_weigh_zero(kind, bad):
    clean, spoilt = started(kind), started(kind)
    points, cluster = torch.randn(N, D), torch.randint(0, NONE, (N,))
    clean.update_(points[2:], cluster[2:])
    points[0, 3], points[1, 0] = bad, bad
    spoilt.update_(points, cluster)
    for ours, reference in zip(spoilt.buffers(), clean.buffers(), strict=True):
        torch.testing.assert_close(ours, reference)


@pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])
def test_the_order_of_pixels_does_not_matter(kind):
    one, other = started(kind), started(kind)
    points, cluster, order = torch.randn(N, D), torch.randint(0, NONE + 1, (N,)), torch.randperm(N)
    one.update_(points, cluster)
    other.update_(points[order], cluster[order])
    for a, b in zip(one.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])
def test_an_empty_batch_and_one_where_all_are_ignored_change_nothing_but_idle(kind):
    prototypes = started(kind)
    mean = prototypes.mean.clone()
    prototypes.update_(torch.zeros(0, D), torch.zeros(0, dtype=torch.int64))
    prototypes.update_(torch.randn(N, D), torch.full((N,), NONE))
    assert torch.equal(prototypes.mean, mean)
    assert (prototypes.idle == 2).all()
    assert prototypes.similarity(torch.zeros(0, D)).shape == (0, C, K)


def test_idle_counts_updates_since_the_last_pixel_of_started_classes():
    prototypes = started(classes=[True, True, False, True])
    for _ in range(3):
        prototypes.update_(torch.randn(2, D), torch.tensor([0, 2 * K]))
    expected = torch.full((C, K), 3)
    expected[0, 0], expected[2] = 0, 0
    assert torch.equal(prototypes.idle, expected)
    assert torch.equal(prototypes.dead(3), expected == 3)
    prototypes.start_(torch.tensor([False, True, False, False]), prototypes.mean, prototypes.mean)
    assert (prototypes.idle[1] == 0).all() and (prototypes.idle[3] == 3).all()


@pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])
def test_starting_a_late_class_leaves_the_others_alone(kind):
    prototypes = started(kind, classes=[True, True, False, True])
    before = prototypes.state_dict()
    before = {name: value.clone() for name, value in before.items()}
    mean, variance = torch.randn(C, K, D), torch.rand(C, K, D)
    prototypes.start_(torch.tensor([False, False, True, False]), mean, variance)
    assert prototypes.started.all()
    assert torch.equal(prototypes.mean[2], mean[2])
    others = [0, 1, 3]
    assert torch.equal(prototypes.mean[others], before["mean"][others])
    if kind is GaussianPrototypes:
        assert torch.equal(prototypes.variance[2], variance[2])
        assert torch.equal(prototypes.variance[others], before["variance"][others])


@pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])
def test_state_survives_a_checkpoint(kind):
    prototypes = started(kind)
    prototypes.update_(torch.randn(N, D), torch.randint(0, NONE, (N,)))
    copy = kind(C, K, D, momentum=0.9)
    copy.load_state_dict(prototypes.state_dict())
    points = torch.randn(N, D)
    assert torch.equal(copy.similarity(points), prototypes.similarity(points))
    assert torch.equal(copy.idle, prototypes.idle)


def bank_of(points):
    """A bank whose class c holds exactly points[c] (n, D)."""
    num_classes, n, dim = points.shape
    bank = FeatureBank(num_classes, n + 3, dim, samples_per_image=n)
    label = torch.arange(num_classes).view(1, -1, 1).expand(1, num_classes, n)
    bank.push_(points.permute(2, 0, 1).unsqueeze(0), label)
    return bank


def test_dead_prototypes_restart_at_different_farthest_points_of_their_class():
    prototypes = started(GaussianPrototypes)
    # Class 1: one living prototype, at the origin; points on a line at 1, 5, and -4.
    prototypes.mean[1] = 0
    prototypes.variance[1, 0] = 0.3
    prototypes.idle[1] = torch.tensor([0, 10, 12])
    prototypes.idle[2] = 50  # the whole class was absent: nothing to repair
    points = torch.zeros(C, 3, D)
    points[1, 0, 0], points[1, 1, 0], points[1, 2, 0] = 1, 5, -4
    before = prototypes.mean.clone()
    bank = bank_of(points)
    moved = prototypes.revive_(bank.features, bank.filled, dead_after=10)
    assert moved.nonzero().tolist() == [[1, 1], [1, 2]]
    assert prototypes.mean[1, 1, 0] == 5 and prototypes.mean[1, 2, 0] == -4
    assert torch.equal(prototypes.variance[1, 1], prototypes.variance[1, 0])
    assert torch.equal(prototypes.variance[1, 2], torch.full((D,), 0.3))
    assert torch.equal(prototypes.mean[[0, 2, 3]], before[[0, 2, 3]])
    assert prototypes.idle[1].tolist() == [0, 0, 0] and (prototypes.idle[2] == 50).all()


def test_nothing_is_revived_from_an_empty_bank():
    prototypes = started()
    prototypes.idle[0, 0] = 10
    before = prototypes.mean.clone()
    empty = FeatureBank(C, 5, D)
    assert not prototypes.revive_(empty.features, empty.filled, dead_after=10).any()
    assert torch.equal(prototypes.mean, before)


def test_statistics_of_a_known_update():
    prototypes = started(momentum=0.5, classes=[True, True, False, True])
    prototypes.mean.zero_()
    # Class 0 uses two of three prototypes evenly: entropy ln 2 / ln 3. Class 1 uses one: 0.
    # Every channel steps by 0.5 * 2.
    cluster = torch.tensor([0, 1, K, K])
    prototypes.update_(torch.full((4, D), 2.0), cluster)
    statistics = prototypes.statistics(dead_after=1)
    assert all(value.dim() == 0 for value in statistics.values())
    assert statistics["started"] == 3
    assert statistics["usage_entropy"].item() == pytest.approx(math.log(2) / math.log(3) / 2)
    assert statistics["dead"] == 9 - 3
    assert statistics["drift"].item() == pytest.approx(1.0)


def test_statistics_are_finite_before_anything_happened():
    for kind in (CentroidPrototypes, GaussianPrototypes):
        statistics = kind(C, K, D, momentum=0.9).statistics()
        assert all(value.isfinite() for value in statistics.values())


def test_usage_entropy_of_even_single_and_only_prototypes():
    assert usage_entropy(torch.full((2, 4), 7.0)).item() == pytest.approx(1)
    assert usage_entropy(torch.tensor([[9.0, 0, 0]])) == 0
    assert usage_entropy(torch.tensor([[5.0], [0.0]])) == 1
    assert usage_entropy(torch.zeros(2, 3)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"momentum": 0.9, "distance": "cosine"}, "'cosine'.*squared.*euclidean"),
        ({"momentum": 0.9, "scale": "max"}, "'max'.*mean.*sum"),
        ({"momentum": 0.9, "num_prototypes": 0}, "num_prototypes is 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        CentroidPrototypes(**{"num_classes": C, "num_prototypes": K, "dim": D, **options})
