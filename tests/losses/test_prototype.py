import math

import pytest
import torch

from mpcl.losses.prototype import pixel_prototype_contrast, prototype_consistency

N, C, K = 12, 4, 3
NONE = C * K
ALL = torch.ones(C, dtype=torch.bool)
SOME = torch.tensor([True, False, True, True])


def make_batch(dtype=torch.float64):
    torch.manual_seed(0)
    similarity = torch.randn(N, C, K, dtype=dtype).requires_grad_()
    cluster = torch.randint(0, NONE, (N,))
    cluster[0] = NONE
    return similarity, cluster, torch.rand(N, dtype=dtype)


@pytest.mark.parametrize("in_class_negatives", [True, False])
@pytest.mark.parametrize("started", [ALL, SOME])
def test_contrast_equals_a_slow_loop(in_class_negatives, started):
    similarity, cluster, weight = make_batch()
    total = 0.0
    for i in range(N):
        own = cluster[i].item()
        if own == NONE or not started[own // K]:
            continue
        scores = (similarity[i].detach() / 0.1).exp().flatten().tolist()
        negatives = [
            scores[other]
            for other in range(NONE)
            if started[other // K]
            and other != own
            and (in_class_negatives or other // K != own // K)
        ]
        total += weight[i].item() * -math.log(scores[own] / (scores[own] + sum(negatives)))
    loss = pixel_prototype_contrast(similarity, cluster, weight, 0.1, started, in_class_negatives)
    assert loss.item() == pytest.approx(total / N, rel=1e-9)


@pytest.mark.parametrize("started", [ALL, SOME])
def test_consistency_equals_a_slow_loop(started):
    similarity, cluster, weight = make_batch()
    similarity = similarity.detach()
    label = cluster // K
    total = 0.0
    for i in range(N):
        c = label[i].item()
        if c == C or not started[c]:
            continue
        scores = [
            math.exp(max(similarity[i, j].tolist()) / 0.1) if started[j] else 0.0 for j in range(C)
        ]
        total += weight[i].item() * -math.log(scores[c] / sum(scores))
    loss = prototype_consistency(similarity, label, weight, 0.1, started)
    assert loss.item() == pytest.approx(total / N, rel=1e-9)


def test_siblings_get_no_gradient_when_left_out_and_unstarted_classes_never():
    similarity, cluster, weight = make_batch()
    cluster[1:] = 2 * K + 1
    pixel_prototype_contrast(similarity, cluster, weight, 1.0, SOME, False).backward()
    assert (similarity.grad[:, 2, [0, 2]] == 0).all()
    assert (similarity.grad[:, 1] == 0).all()
    assert (similarity.grad[1:, 2, 1] != 0).all() and (similarity.grad[1:, 0] != 0).all()


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize(
    "case", ["empty", "all ignored", "nothing started", "own class not started", "zero weights"]
)
def test_when_nothing_takes_part_the_losses_are_zero_and_attached(case, scale):
    similarity = torch.full((5, C, K), 0.5 * scale).requires_grad_()
    cluster, started, weight = torch.arange(5), ALL, torch.ones(5)
    if case == "empty":
        similarity = torch.zeros(0, C, K, requires_grad=True)
        cluster, weight = cluster[:0], weight[:0]
    elif case == "all ignored":
        cluster = torch.full((5,), NONE)
    elif case == "nothing started":
        started = torch.zeros(C, dtype=torch.bool)
    elif case == "own class not started":
        cluster, started = torch.full((5,), K), SOME
    else:
        weight = torch.zeros(5)
    for in_class_negatives in (True, False):
        loss = pixel_prototype_contrast(
            similarity, cluster, weight, 0.1, started, in_class_negatives
        )
        loss = loss + prototype_consistency(similarity, cluster // K, weight, 0.1, started)
        assert loss.item() == 0 and loss.requires_grad
        similarity.grad = None
        loss.backward()
        assert (similarity.grad == 0).all()


@pytest.mark.parametrize("in_class_negatives", [True, False])
def test_saturated_similarities_keep_loss_and_gradient_finite(in_class_negatives):
    similarity, cluster, weight = make_batch(torch.float32)
    extreme = (similarity.detach() * 1e5).requires_grad_()
    loss = pixel_prototype_contrast(extreme, cluster, weight, 0.1, SOME, in_class_negatives)
    loss = loss + prototype_consistency(extreme, cluster // K, weight, 0.1, SOME)
    loss.backward()
    assert loss.isfinite() and extreme.grad.isfinite().all()


def test_one_class_with_one_prototype_costs_nothing():
    similarity = torch.randn(6, 1, 1)
    one = torch.ones(1, dtype=torch.bool)
    zeros = torch.zeros(6, dtype=torch.int64)
    assert pixel_prototype_contrast(similarity, zeros, torch.ones(6), 0.1, one) == 0
    assert pixel_prototype_contrast(similarity, zeros, torch.ones(6), 0.1, one, False) == 0
    assert prototype_consistency(similarity, zeros, torch.ones(6), 0.1, one) == 0


def test_losses_do_not_depend_on_the_order_of_pixels():
    similarity, cluster, weight = make_batch()
    order = torch.randperm(N)
    for loss, target in (
        (pixel_prototype_contrast, cluster),
        (prototype_consistency, cluster // K),
    ):
        torch.testing.assert_close(
            loss(similarity[order], target[order], weight[order], 0.1, SOME),
            loss(similarity, target, weight, 0.1, SOME),
        )


def test_half_precision_similarities_are_computed_in_float32():
    similarity, cluster, weight = make_batch(torch.float32)
    half = similarity.detach().half()
    assert pixel_prototype_contrast(half, cluster, weight, 0.1, ALL).dtype == torch.float32
    torch.testing.assert_close(
        prototype_consistency(half, cluster // K, weight, 0.1, SOME),
        prototype_consistency(half.float(), cluster // K, weight, 0.1, SOME),
    )


def test_a_temperature_of_zero_is_refused():
    similarity, cluster, weight = make_batch()
    with pytest.raises(ValueError, match="temperature is 0"):
        pixel_prototype_contrast(similarity, cluster, weight, 0, ALL)
    with pytest.raises(ValueError, match="temperature is -1"):
        prototype_consistency(similarity, cluster // K, weight, -1, ALL)
