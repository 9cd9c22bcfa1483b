import math

import pytest
import torch

from mpcl.prototypes.bank import FeatureBank
from mpcl.prototypes.centroid import CentroidPrototypes
from mpcl.prototypes.clustering import cluster_pixels
from mpcl.prototypes.gaussian import GaussianPrototypes
from mpcl.prototypes.sinkhorn import assign, balance

C, K, D, N = 4, 3, 16, 400
NONE = C * K
EPSILON = 0.05


def make_prototypes(kind=CentroidPrototypes, classes=(True,) * C):
    torch.manual_seed(0)
    prototypes = kind(C, K, D, momentum=0.9)
    prototypes.start_(torch.tensor(classes), torch.randn(C, K, D), torch.ones(C, K, D))
    return prototypes


def make_pixels():
    torch.manual_seed(1)
    label = torch.randint(0, C + 1, (N,))
    return torch.randn(N, D), label, torch.rand(N) < 0.7


def make_bank(fill=200):
    bank = FeatureBank(C, 500, D, samples_per_image=fill)
    label = torch.arange(C).view(1, C, 1).expand(1, C, fill)
    bank.push_(torch.randn(1, D, C, fill), label)
    return bank


@pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])
def test_batch_pool_equals_balancing_each_class_by_itself(kind):
    prototypes, (embeddings, label, takes_part) = make_prototypes(kind), make_pixels()
    result = cluster_pixels(
        prototypes, None, embeddings, label, takes_part, pool="batch", epsilon=EPSILON
    )
    similarity = prototypes.similarity(embeddings)
    for c in range(C):
        mine = label == c
        own = similarity[mine, c]
        pool = torch.where(takes_part[mine], 0, 1)
        table = balance(own, pool, 1, epsilon=EPSILON)
        k = assign(own, torch.zeros(len(own), dtype=torch.int64), table.potentials, EPSILON)
        assert torch.equal(result.cluster[mine], c * K + k)
    assert (result.cluster[label == C] == NONE).all()
    expected = torch.where(takes_part & (label < C), result.cluster, NONE)
    assert torch.equal(result.clustered, expected)


@pytest.mark.parametrize("pool", ["batch", "bank"])
def test_pixels_that_do_not_take_part_never_influence_the_others(pool):
    prototypes, (embeddings, label, takes_part) = make_prototypes(), make_pixels()
    bank = make_bank()
    arguments = {"pool": pool, "pool_size": 10_000, "epsilon": EPSILON}
    torch.manual_seed(5)
    before = cluster_pixels(prototypes, bank, embeddings, label, takes_part, **arguments)
    embeddings[~takes_part] = 3 + 5 * torch.randn(int((~takes_part).sum()), D)
    torch.manual_seed(5)
    after = cluster_pixels(prototypes, bank, embeddings, label, takes_part, **arguments)
    assert torch.equal(after.clustered, before.clustered)
    assert torch.equal(after.violation, before.violation)


@pytest.mark.parametrize("pool", ["batch", "bank"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_unstarted_classes_ignored_and_non_finite_pixels_have_no_cluster(pool, bad):
    prototypes = make_prototypes(classes=(True, False, True, True))
    embeddings, label, takes_part = make_pixels()
    label[:3], takes_part[:3] = torch.tensor([0, 2, C]), True
    embeddings[:3, 5] = bad
    result = cluster_pixels(
        prototypes, make_bank(), embeddings, label, takes_part, pool=pool, epsilon=EPSILON
    )
    without = (label == 1) | (label == C)
    without[:3] = True
    assert torch.equal(result.cluster == NONE, without)
    assert torch.equal(result.cluster[~without] // K, label[~without])
    assert result.violation.isfinite()


def test_the_bank_keeps_a_one_sided_batch_from_being_torn_apart():
    # The batch shows one of the class's three modes; the bank has seen all of them.
    torch.manual_seed(0)
    prototypes = CentroidPrototypes(1, K, D, momentum=0.9)
    modes = 2 * torch.eye(K, D).unsqueeze(0)
    prototypes.start_(torch.tensor([True]), modes, torch.ones(1, K, D))
    bank = FeatureBank(1, 600, D, samples_per_image=600)
    seen = modes[0].repeat(200, 1) + 0.3 * torch.randn(600, D)
    bank.push_(seen.t().view(1, D, 1, 600), torch.zeros(1, 1, 600, dtype=torch.int64))
    embeddings = modes[0, 1] + 0.3 * torch.randn(60, D)
    label, takes_part = torch.zeros(60, dtype=torch.int64), torch.ones(60, dtype=torch.bool)
    arguments = (prototypes, bank, embeddings, label, takes_part)
    batch = cluster_pixels(*arguments, pool="batch", epsilon=EPSILON).cluster
    pooled = cluster_pixels(*arguments, pool="bank", pool_size=1200, epsilon=EPSILON).cluster
    assert (batch == 1).float().mean() < 0.5
    assert (pooled == 1).float().mean() > 0.9


@pytest.mark.parametrize("bank", [None, FeatureBank(C, 50, D)])
def test_without_banked_embeddings_the_batch_half_alone_is_balanced(bank):
    prototypes, (embeddings, label, takes_part) = make_prototypes(), make_pixels()
    arguments = (prototypes, bank, embeddings, label, takes_part)
    batch = cluster_pixels(*arguments, pool="batch", epsilon=EPSILON)
    # A pool with room for every pixel samples all of them: the same balance.
    pooled = cluster_pixels(*arguments, pool="bank", pool_size=2 * C * N, epsilon=EPSILON)
    assert torch.equal(pooled.cluster, batch.cluster)
    torch.testing.assert_close(pooled.violation, batch.violation, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("pool", ["batch", "bank"])
def test_nothing_started_nothing_labelled_and_no_pixels_are_fine(pool):
    embeddings, label, takes_part = make_pixels()
    cases = [
        (make_prototypes(classes=(False,) * C), embeddings, label, takes_part),
        (make_prototypes(), embeddings, torch.full((N,), C), takes_part),
        (make_prototypes(), embeddings[:0], label[:0], takes_part[:0]),
    ]
    for prototypes, *pixels in cases:
        result = cluster_pixels(prototypes, None, *pixels, pool=pool, epsilon=EPSILON)
        assert (result.cluster == NONE).all() and (result.clustered == NONE).all()
        assert result.cluster.shape == pixels[1].shape
        assert result.violation == 0


def test_fewer_pixels_than_prototypes_go_to_their_nearest():
    prototypes = make_prototypes()
    embeddings, label = torch.randn(2, D), torch.tensor([1, 3])
    result = cluster_pixels(
        prototypes,
        None,
        embeddings,
        label,
        torch.tensor([True, True]),
        pool="batch",
        epsilon=EPSILON,
    )
    distance = torch.cdist(embeddings, prototypes.mean.flatten(0, 1)).view(2, C, K)
    nearest = distance[torch.arange(2), label].argmin(1)
    assert torch.equal(result.cluster, label * K + nearest)


def test_the_order_of_pixels_does_not_matter():
    prototypes, (embeddings, label, takes_part) = make_prototypes(), make_pixels()
    order = torch.randperm(N)
    arguments = {"pool": "batch", "epsilon": EPSILON}
    one = cluster_pixels(prototypes, None, embeddings, label, takes_part, **arguments)
    other = cluster_pixels(
        prototypes, None, embeddings[order], label[order], takes_part[order], **arguments
    )
    assert torch.equal(one.cluster[order], other.cluster)


def test_clustering_leaves_no_graph_and_does_not_move_prototypes():
    prototypes, (embeddings, label, takes_part) = make_prototypes(), make_pixels()
    before = prototypes.mean.clone()
    embeddings.requires_grad_()
    result = cluster_pixels(prototypes, make_bank(), embeddings, label, takes_part, epsilon=EPSILON)
    assert not result.violation.requires_grad
    assert torch.equal(prototypes.mean, before)


def test_bad_arguments_are_named():
    prototypes, pixels = make_prototypes(), make_pixels()
    with pytest.raises(ValueError, match=r"'queue'.*bank.*batch"):
        cluster_pixels(prototypes, None, *pixels, pool="queue", epsilon=EPSILON)
    with pytest.raises(ValueError, match="pool_size is 7, expected at least 8"):
        cluster_pixels(prototypes, None, *pixels, pool_size=7, epsilon=EPSILON)
