import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcl.prototypes.sinkhorn import assign, balance

C, K = 5, 3
# Class 1 is absent; 2 is too small to be balanced at 4 * K = 12, 4 just large enough.
SIZES, BALANCED = (40, 0, 7, 200, 12), (0, 3, 4)
DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)]
)


def make_pixels(dtype=torch.float64, seed=0, ignored=30, spread=0.5):
    """Similarities (N, K) to the prototypes of the own class, and labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.cat([torch.full((n,), c) for c, n in enumerate((*SIZES, ignored))])
    label = label[torch.randperm(len(label), generator=generator)]
    similarity = -spread * torch.rand(len(label), K, dtype=torch.float64, generator=generator)
    similarity[:, 0] += 0.3 * spread  # an uneven problem: most pixels prefer the first prototype
    return similarity.to(dtype), label


def balanced(similarity, label, epsilon=0.05, **options):
    """:func:`balance` with a place for every pixel in every class, valid in its own."""
    everywhere = similarity.t().unsqueeze(1).expand(-1, C, -1)
    return balance(everywhere, label == torch.arange(C).unsqueeze(1), epsilon=epsilon, **options)


def plan_of(similarity, label, potentials, epsilon):
    own = potentials[label.clamp(max=C - 1)]
    return (similarity.double() / epsilon + own.double()).softmax(1)


def pot_plan(similarity, epsilon, sweeps):
    """POT's plan with our marginals. Transposed, its half-steps come in our order: rows first."""
    rows, columns = np.ones(len(similarity)), np.full(K, len(similarity) / K)
    cost = -similarity.double().numpy()
    if sweeps is None:
        return torch.tensor(
            ot.sinkhorn(rows, columns, cost, epsilon, numItermax=3000, stopThr=1e-13)
        )
    plan = ot.sinkhorn(columns, rows, cost.T, epsilon, numItermax=sweeps, stopThr=0, warn=False).T
    return torch.tensor(plan / plan.sum(1, keepdims=True))


@DTYPES
@pytest.mark.parametrize("epsilon", [0.05, 0.1])
@pytest.mark.parametrize("sweeps", [3, 10, None])
def test_every_class_equals_pot_after_the_same_sweeps_and_when_converged(
    dtype, tolerance, epsilon, sweeps
):
    similarity, label = make_pixels(dtype)
    table = balanced(similarity, label, epsilon, sweeps=sweeps or 2000)
    assert table.potentials.dtype == dtype
    plan = plan_of(similarity, label, table.potentials, epsilon)
    for c in BALANCED:
        expected = pot_plan(similarity[label == c], epsilon, sweeps)
        torch.testing.assert_close(plan[label == c], expected, atol=tolerance, rtol=0)
    worst = max((plan[label == c].sum(0) / (SIZES[c] / K) - 1).abs().max() for c in BALANCED)
    assert table.violation.item() == pytest.approx(worst.item(), rel=1e-4, abs=1e-5)
    assert worst < 1e-5 if sweeps is None else worst > 1e-5  # or this would show nothing


def test_small_and_absent_classes_keep_zero_potentials():
    similarity, label = make_pixels()
    potentials = balanced(similarity, label).potentials
    assert potentials.shape == (C, K)
    assert (potentials != 0).any(1).tolist() == [c in BALANCED for c in range(C)]
    small = label == 2
    k = assign(similarity, label, potentials, 0.05)
    assert torch.equal(k[small], similarity[small].argmax(1))


@pytest.mark.parametrize("num_pixels", [0, 9])
def test_nothing_to_balance_gives_zeros(num_pixels):
    table = balanced(torch.rand(num_pixels, K), torch.full((num_pixels,), C))
    assert (table.potentials == 0).all() and table.violation == 0


def test_ignored_and_non_finite_pixels_do_not_influence_the_balance():
    similarity, label = make_pixels(torch.float32)
    spoilt = torch.tensor([[math.nan] * K, [math.inf, 0, 0], [-math.inf] * K, [1e4] * K])
    spoilt_label = torch.tensor([0, 3, 3, C])
    table = balanced(torch.cat([similarity, spoilt]), torch.cat([label, spoilt_label]))
    torch.testing.assert_close(table, balanced(similarity, label))


def test_a_prototype_four_hundred_epsilon_away_is_filled_within_ten_sweeps():
    similarity, label = make_pixels(torch.float32)
    similarity[:, 2] -= 400 * 0.05
    table = balanced(similarity, label)
    assert table.potentials.isfinite().all() and table.violation < 0.2
    k = assign(similarity, label, table.potentials, 0.05)
    assert 0.2 < (k[label == 3] == 2).float().mean() < 0.47


def test_exactly_tied_similarities_stay_finite():
    table = balanced(torch.zeros(20, K), torch.zeros(20, dtype=torch.int64))
    assert table.potentials.isfinite().all() and table.violation < 1e-6


def test_the_order_of_pixels_does_not_matter():
    similarity, label = make_pixels()
    order = torch.randperm(len(label))
    table, shuffled = balanced(similarity, label), balanced(similarity[order], label[order])
    torch.testing.assert_close(table.potentials, shuffled.potentials)
    k = assign(similarity, label, table.potentials, 0.05)
    k_shuffled = assign(similarity[order], label[order], shuffled.potentials, 0.05)
    assert torch.equal(k[order], k_shuffled)


def test_assignment_with_converged_potentials_is_close_to_the_exact_balanced_one():
    similarity, label = make_pixels()
    chosen = label == 3
    table = balanced(similarity, label, 0.005, sweeps=3000)
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
    table = balanced(similarity, label, epsilon, sweeps=300)
    plan = plan_of(similarity, label, table.potentials, epsilon)
    for c in BALANCED:
        expected = torch.full((K,), SIZES[c] / K).double()
        torch.testing.assert_close(plan[label == c].sum(0), expected, rtol=1e-3, atol=0)
    per_pixel = shift * torch.linspace(-1, 1, len(label), dtype=torch.float64).unsqueeze(1)
    shifted = balanced(similarity + per_pixel, label, epsilon, sweeps=300)
    torch.testing.assert_close(shifted.potentials, table.potentials, atol=1e-7, rtol=1e-7)


def test_half_precision_is_computed_in_float32():
    similarity, label = make_pixels(torch.float32)
    half = similarity.half()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        table = balanced(half, label)
    assert torch.equal(table.potentials, balanced(half.float(), label).potentials)


def test_bad_arguments_are_named():
    similarity, label = make_pixels()
    with pytest.raises(ValueError, match=r"epsilon is 0"):
        balanced(similarity, label, 0)
    with pytest.raises(ValueError, match=r"epsilon is -1"):
        assign(similarity, label, torch.zeros(C, K), -1)
    with pytest.raises(ValueError, match=r"sweeps is -1"):
        balanced(similarity, label, sweeps=-1)
    with pytest.raises(ValueError, match=r"expected \(K, C, P\) and \(C, P\)"):
        balance(similarity, label, epsilon=1)
