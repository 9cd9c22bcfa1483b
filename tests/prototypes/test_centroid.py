"""What all prototypes do, and the distances of centroids."""

import math

import pytest
import torch

from mpcl.prototypes import base
from mpcl.prototypes.base import usage_entropy
from mpcl.prototypes.centroid import CentroidPrototypes
from mpcl.prototypes.gaussian import GaussianPrototypes

C, K, D, N = 4, 3, 8, 50
NONE = C * K
LATE = [True, True, False, True]  # class 2 has not started
KINDS = pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])


def started(kind=CentroidPrototypes, momentum=0.9, classes=(True,) * C, **options):
    torch.manual_seed(0)
    prototypes = kind(C, K, D, momentum=momentum, **options)
    prototypes.start_(torch.tensor(classes), torch.randn(C, K, D), 0.2 + torch.rand(C, K, D))
    return prototypes


def state_of(prototypes):
    return {name: buffer.clone() for name, buffer in prototypes.named_buffers()}


@pytest.mark.parametrize(("scale", "divisor"), [("mean", D), ("sum", 1)])
@pytest.mark.parametrize(("distance", "power"), [("squared", 2), ("euclidean", 1)])
def test_similarity_equals_the_written_out_distance(scale, divisor, distance, power):
    prototypes = started(distance=distance, scale=scale)
    points = torch.randn(N, D)
    difference = points.double()[:, None, None] - prototypes.mean.double()
    expected = -((difference.norm(dim=-1) / divisor**0.5) ** power)
    actual = prototypes.similarity(points).double()
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (CentroidPrototypes, {"distance": "squared"}),
        (CentroidPrototypes, {"distance": "euclidean"}),
        (GaussianPrototypes, {}),
    ],
)
def test_the_unit_is_how_much_larger_similarities_are_than_means_over_channels(kind, options):
    points = torch.randn(N, D)
    mean, total = (started(kind, scale=scale, **options) for scale in ("mean", "sum"))
    assert mean.unit == 1 < total.unit
    torch.testing.assert_close(total.similarity(points), total.unit * mean.similarity(points))


@KINDS
def test_similarities_to_the_own_class_are_columns_of_all_of_them(kind):
    prototypes, label = started(kind), torch.randint(0, C + 1, (N,))
    points, labelled = torch.randn(N, D), label < C
    own = prototypes.own_similarity(points, label)
    expected = prototypes.similarity(points)[labelled, label[labelled]]
    torch.testing.assert_close(own[labelled], expected)
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


@KINDS
def test_similarity_is_float32_under_autocast_and_leaves_the_settings_alone(kind):
    prototypes, points = started(kind), torch.randn(N, D)
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
    assert actual.dtype == torch.float32 and torch.equal(actual, expected)


def test_repeated_updates_follow_the_closed_form_of_a_moving_average():
    # Towards a constant x: p_n = x + alpha^n (p_0 - x). Gaussians' moments have their own test.
    prototypes = started(momentum=0.9)
    start, x = prototypes.mean.clone(), torch.randn(C, K, D)
    noise = 0.1 * torch.randn(C, K, D)
    for _ in range(7):
        pixels = torch.cat([x + noise, x - noise]).flatten(0, 1)
        prototypes.update_(pixels, torch.arange(NONE).repeat(2))
    torch.testing.assert_close(prototypes.mean, x + 0.9**7 * (start - x))
    assert torch.equal(prototypes.start_mean, start)


@KINDS
def test_prototypes_without_pixels_and_unstarted_classes_keep_their_value_bit_by_bit(kind):
    prototypes = started(kind, classes=LATE)
    before = state_of(prototypes)
    cluster = torch.full((N,), NONE)
    cluster[:20] = 2 * K + 1  # a class that has not started
    cluster[20:30] = 0
    prototypes.update_(torch.randn(N, D), cluster)
    expected = torch.zeros(C, K, dtype=torch.bool)
    expected[0, 0] = True
    for name in {"mean", "variance"} & before.keys():
        changed = (prototypes.get_buffer(name) != before[name]).any(-1)
        assert torch.equal(changed, expected)
    assert torch.equal(prototypes.start_mean, before["start_mean"])


@KINDS
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_embeddings_weigh_zero(kind, bad):
    clean, spoilt = started(kind), started(kind)
    points, cluster = torch.randn(N, D), torch.randint(0, NONE, (N,))
    clean.update_(points[2:], cluster[2:])
    points[0, 3], points[1, 0] = bad, bad
    spoilt.update_(points, cluster)
    torch.testing.assert_close(state_of(spoilt), state_of(clean))


@KINDS
def test_the_order_of_pixels_does_not_matter(kind):
    one, other = started(kind), started(kind)
    points, cluster, order = torch.randn(N, D), torch.randint(0, NONE + 1, (N,)), torch.randperm(N)
    one.update_(points, cluster)
    other.update_(points[order], cluster[order])
    torch.testing.assert_close(state_of(one), state_of(other))


@KINDS
def test_an_empty_batch_and_one_where_all_are_ignored_change_nothing_but_idle(kind):
    prototypes = started(kind)
    before = state_of(prototypes)
    prototypes.update_(torch.zeros(0, D), torch.zeros(0, dtype=torch.int64))
    prototypes.update_(torch.randn(N, D), torch.full((N,), NONE))
    before["idle"] += 2
    torch.testing.assert_close(state_of(prototypes), before, atol=0, rtol=0)
    assert prototypes.similarity(torch.zeros(0, D)).shape == (0, C, K)


def test_idle_counts_updates_since_the_last_pixel_of_started_classes(monkeypatch):
    monkeypatch.setattr(base, "DEAD_AFTER", 3)
    prototypes = started(classes=LATE)
    prototypes.update_(torch.randn(1, D), torch.tensor([NONE]))
    for _ in range(2):
        prototypes.update_(torch.randn(2, D), torch.tensor([0, 2 * K]))
    expected = torch.full((C, K), 3)
    expected[0, 0], expected[2] = 0, 0
    assert torch.equal(prototypes.idle, expected)
    assert torch.equal(prototypes.dead, expected == 3)
    prototypes.start_(torch.tensor([False, True, False, False]), prototypes.mean, prototypes.mean)
    assert (prototypes.idle[1] == 0).all() and (prototypes.idle[3] == 3).all()


@KINDS
def test_starting_a_late_class_leaves_the_others_alone(kind):
    prototypes = started(kind, classes=LATE)
    prototypes.update_(torch.randn(N, D), torch.randint(0, NONE, (N,)))
    before = state_of(prototypes)
    mean, variance = torch.randn(C, K, D), torch.rand(C, K, D)
    prototypes.start_(torch.tensor([False, False, True, False]), mean, variance)
    assert prototypes.started.all()
    for name, value in {"mean": mean, "start_mean": mean, "variance": variance}.items():
        if name in before:
            before[name][2] = value[2]
            assert torch.equal(prototypes.get_buffer(name), before[name])


def test_statistics_of_a_known_update(monkeypatch):
    monkeypatch.setattr(base, "DEAD_AFTER", 1)
    prototypes = started(momentum=0.5, classes=LATE)
    prototypes.mean.zero_()
    # Class 0 uses two of three prototypes evenly: entropy ln 2 / ln 3. Class 1 uses one: 0.
    # Every channel steps by 0.5 * 2.
    statistics = prototypes.update_(torch.full((4, D), 2.0), torch.tensor([0, 1, K, K]))
    assert all(value.dim() == 0 for value in statistics.values())
    assert {name: value.item() for name, value in statistics.items()} == pytest.approx(
        {"started": 3, "usage_entropy": math.log(2) / math.log(3) / 2, "dead": 9 - 3, "drift": 1}
    )


@KINDS
def test_statistics_are_finite_before_anything_started(kind):
    statistics = kind(C, K, D, momentum=0.9).update_(torch.randn(2, D), torch.tensor([0, NONE]))
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
        ({"distance": "cosine"}, "'cosine'.*squared.*euclidean"),
        ({"scale": "max"}, "'max'.*mean.*sum"),
        ({"num_prototypes": 0}, "num_prototypes is 0"),
    ],
)
def test_bad_arguments_are_named(options, message):
    arguments = {"num_classes": C, "num_prototypes": K, "dim": D, "momentum": 0.9}
    with pytest.raises(ValueError, match=message):
        CentroidPrototypes(**(arguments | options))
