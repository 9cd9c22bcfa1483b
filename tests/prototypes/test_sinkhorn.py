import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcl.prototypes.sinkhorn import assign, balance

C, K = 5, 3
SIZES = (
    40,
    0,
    7,
    200,
    12,
)  # class 1 absent; class 2 too small to balance at 4 * K = 12, class 4 just large enough


def make_pixels(dtype=torch.float64, seed=0, ignored=30, spread=0.5):
    generator = torch.Generator().manual_seed(seed)
    label = torch.cat([torch.full((n,), c) for c, n in enumerate((*SIZES, ignored))])
    label = label[torch.randperm(len(label), generator=generator)]
    similarity = -spread * torch.rand(len(label), K, dtype=torch.float64, generator=generator)
    similarity[:, 0] += 0.3 * spread  # an uneven problem: most pixels prefer the first prototype
    return similarity.to(dtype), label


def plan_of(similarity, label, potentials, epsilon):
    return (similarity.double() / epsilon + potentials[label].double()).softmax(1)


def pot_plan(similarity, epsilon, sweeps=None):
    """POT's plan with our marginals. Transposed, its half-steps come in our order: rows first."""
    rows, columns = np.ones(len(similarity)), np.full(K, len(similarity) / K)
    cost = -similarity.double().numpy()
    if sweeps is None:
        return torch.tensor(
            ot.sinkhorn(rows, columns, cost, epsilon, numItermax=3000, stopThr=1e-13)
        )
    plan = ot.sinkhorn(columns, rows, cost.T, epsilon, numItermax=sweeps, stopThr=0, warn=False).T
    return torch.tensor(plan / plan.sum(1, keepdims=True))


@pytest.mark.parametrize("epsilon", [0.05, 0.1])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("sweeps", [3, 10])
def test_every_class_equals_pot_after_the_same_sweeps(epsilon, dtype, tolerance, sweeps):
    similarity, label = make_pixels(dtype)
    table = balance(similarity, label, C, epsilon=epsilon, sweeps=sweeps)
    assert table.potentials.dtype == dtype
    plan = plan_of(similarity, label, table.potentials, epsilon)
    for c in (0, 3, 4):
        expected = pot_plan(similarity[label == c], epsilon, sweeps)
        torch.testing.assert_close(plan[label == c], expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_every_class_equals_pot_when_converged(dtype, tolerance):
    similarity, label = make_pixels(dtype)
    table = balance(similarity, label, C, epsilon=0.1, sweeps=500)
    plan = plan_of(similarity, label, table.potentials, 0.1)
    for c in (0, 3, 4):
        expected = pot_plan(similarity[label == c], 0.1)
        torch.testing.assert_close(plan[label == c], expected, atol=tolerance, rtol=0)
    assert table.violation < 1e-4


def test_violation_is_the_worst_column_error_of_the_balanced_classes():
    similarity, label = make_pixels()
    table = balance(similarity, label, C, epsilon=0.05, sweeps=2)
    plan = plan_of(similarity, label, table.potentials, 0.05)
    worst = max(
        (plan[label == c].sum(0) / (SIZES[c] / K) - 1).abs().max().item() for c in (0, 3, 4)
    )
    assert worst > 1e-3  # not yet converged, or the test would show nothing
    assert table.violation.item() == pytest.approx(worst, rel=1e-9)


def test_small_absent_and_ignored_classes_keep_zero_potentials():
    similarity, label = make_pixels()
    potentials = balance(similarity, label, C, epsilon=0.05).potentials
    assert potentials.shape == (C + 1, K)
    assert (potentials[[1, 2, C]] == 0).all()
    assert (potentials[[0, 3, 4]] != 0).any(1).all()
    small = label == 2
    k = assign(similarity, label, potentials, 0.05)
    assert torch.equal(k[small], similarity[small].argmax(1))


@pytest.mark.parametrize("num_pixels", [0, 9])
def test_nothing_to_balance_gives_zeros(num_pixels):
    table = balance(torch.rand(num_pixels, K), torch.full((num_pixels,), C), C, epsilon=0.05)
    assert (table.potentials == 0).all() and table.violation == 0


def test_ignored_and_non_finite_pixels_do_not_influence_the_balance():
    similarity, label = make_pixels(torch.float32)
    reference = balance(similarity, label, C, epsilon=0.05)
    spoilt = torch.tensor([[math.nan] * K, [math.inf, 0, 0], [-math.inf] * K, [1e4] * K])
    spoilt_label = torch.tensor([0, 3, 3, C])
    table = balance(
        torch.cat([similarity, spoilt]), torch.cat([label, spoilt_label]), C, epsilon=0.05
    )
    torch.testing.assert_close(table.potentials, reference.potentials)
    torch.testing.assert_close(table.violation, reference.violation)


def test_a_prototype_four_hundred_epsilon_away_is_filled_within_ten_sweeps():
    similarity, label = make_pixels(torch.float32)
    similarity[:, 2] -= 400 * 0.05
    table = balance(similarity, label, C, epsilon=0.05, sweeps=10)
    assert table.potentials.isfinite().all()
    k = assign(similarity, label, table.potentials, 0.05)
    share = (k[label == 3] == 2).float().mean()
    assert 0.2 < share < 0.47
    assert table.violation < 0.2


def test_exactly_tied_similarities_stay_finite():
    label = torch.zeros(20, dtype=torch.int64)
    table = balance(torch.zeros(20, K), label, 1, epsilon=0.05)
    assert table.potentials.isfinite().all() and table.violation < 1e-6


def test_the_order_of_pixels_does_not_matter():
    similarity, label = make_pixels()
    order = torch.randperm(len(label))
    table = balance(similarity, label, C, epsilon=0.05)
    shuffled = balance(similarity[order], label[order], C, epsilon=0.05)
    torch.testing.assert_close(table.potentials, shuffled.potentials)
    k = assign(similarity, label, table.potentials, 0.05)
    k_shuffled = assign(similarity[order], label[order], shuffled.potentials, 0.05)
    assert torch.equal(k[order], k_shuffled)


def test_assignment_with_converged_potentials_is_close_to_the_exact_balanced_one():
    similarity, label = make_pixels()
    chosen = label == 3
    table = balance(similarity, label, C, epsilon=0.005, sweeps=3000)
    k = assign(similarity, label, table.potentials, 0.005)[chosen]
    exact = ot.emd(np.ones(200), np.full(K, 200 / K), -similarity[chosen].numpy()).argmax(1)
    assert (k.numpy() == exact).mean() > 0.97


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    epsilon=st.sampled_from([0.1, 0.5]),
    spread=st.floats(0.01, 1.0),
    shift=st.floats(-50, 50),
)
def test_marginals_hold_and_a_shift_of_a_pixel_changes_nothing(seed, epsilon, spread, shift):
    similarity, label = make_pixels(seed=seed, spread=spread)
    table = balance(similarity, label, C, epsilon=epsilon, sweeps=300)
    plan = plan_of(similarity, label, table.potentials, epsilon)
    for c in (0, 3, 4):
        torch.testing.assert_close(
            plan[label == c].sum(0), torch.full((K,), SIZES[c] / K).double(), rtol=1e-3, atol=0
        )
    per_pixel = shift * torch.linspace(-1, 1, len(label), dtype=torch.float64).unsqueeze(1)
    shifted = balance(similarity + per_pixel, label, C, epsilon=epsilon, sweeps=300)
    torch.testing.assert_close(shifted.potentials, table.potentials, atol=1e-7, rtol=1e-7)


def test_half_precision_is_computed_in_float32():
    similarity, label = make_pixels(torch.float32)
    half = similarity.half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        table = balance(half, label, C, epsilon=0.05)
    reference = balance(half.float(), label, C, epsilon=0.05)
    assert torch.equal(table.potentials, reference.potentials)


def test_bad_arguments_are_named():
    similarity, label = make_pixels()
    with pytest.raises(ValueError, match=r"epsilon is 0"):
        balance(similarity, label, C, epsilon=0)
    with pytest.raises(ValueError, match=r"epsilon is -1"):
        assign(similarity, label, torch.zeros(C + 1, K), -1)
    with pytest.raises(ValueError, match=r"sweeps is -1"):
        balance(similarity, label, C, epsilon=1, sweeps=-1)
    with pytest.raises(ValueError, match=r"expected \(N, K\)"):
        balance(similarity, label[1:], C, epsilon=1)
