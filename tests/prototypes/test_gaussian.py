import pytest
import torch
from torch.distributions import Independent, Normal

from mpcl.prototypes.gaussian import GaussianPrototypes

C, K, D, N = 4, 3, 8, 50


def started(momentum=0.9, dim=D, **options):
    torch.manual_seed(0)
    prototypes = GaussianPrototypes(C, K, dim, momentum=momentum, **options)
    everything = torch.ones(C, dtype=torch.bool)
    prototypes.start_(everything, torch.randn(C, K, dim), 0.2 + torch.rand(C, K, dim))
    return prototypes


@pytest.mark.parametrize(("scale", "divisor"), [("mean", 256), ("sum", 1)])
def test_similarity_and_its_gradient_are_those_of_torch_distributions(scale, divisor):
    prototypes = started(dim=256, scale=scale, min_variance=0.05)
    prototypes.variance[0] = 0.0  # counts as the floor, but is stored as it is
    variance = prototypes.variance.double().clamp_min(0.05)
    normal = Independent(Normal(prototypes.mean.double(), variance.sqrt()), 1)
    points = torch.randn(N, 256, requires_grad=True)
    direction = torch.randn(N, C, K)
    actual = prototypes.similarity(points)
    expected = normal.log_prob(points.double()[:, None, None]) / divisor
    torch.testing.assert_close(actual.double(), expected, atol=2.56e-3 / divisor, rtol=2e-6)
    (gradient,) = torch.autograd.grad(actual, points, direction)
    (reference,) = torch.autograd.grad(expected, points, direction.double())
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=2.56e-2 / divisor)
    assert (prototypes.variance[0] == 0).all()


def test_moments_follow_a_slow_recursion_about_the_updated_mean():
    prototypes = started(momentum=0.8)
    points = torch.randn(N, D).double()
    cluster = torch.randint(0, C * K, (N,))
    mean, variance = prototypes.mean.double(), prototypes.variance.double()
    for _ in range(5):
        for j in range(C * K):
            members, (c, k) = points[cluster == j], divmod(j, K)
            if len(members):
                mean[c, k] = 0.8 * mean[c, k] + 0.2 * members.mean(0)
                spread = (members - mean[c, k]).square().mean(0)
                variance[c, k] = 0.8 * variance[c, k] + 0.2 * spread
        prototypes.update_(points.float(), cluster)
    torch.testing.assert_close(prototypes.mean.double(), mean, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(prototypes.variance.double(), variance, atol=1e-5, rtol=1e-5)


def test_variance_of_a_constant_input_follows_the_closed_form():
    # With d = mu_0 - x and a = alpha: mu_n - x = a^n d, so the spread at step n is a^2n d^2 and
    # variance_n = a^n v + (1 - a) d^2 sum_{j=1..n} a^(n-j) a^(2j)
    #            = a^n (v + (1 - a) d^2 sum_j a^j).
    alpha, steps = 0.9, 6
    prototypes = started(momentum=alpha)
    x = torch.randn(C, K, D)
    d, v = prototypes.mean - x, prototypes.variance.clone()
    for _ in range(steps):
        prototypes.update_(x.flatten(0, 1), torch.arange(C * K))
    series = sum(alpha**j for j in range(1, steps + 1))
    expected = alpha**steps * (v + (1 - alpha) * d.square() * series)
    torch.testing.assert_close(prototypes.variance, expected, atol=1e-5, rtol=1e-5)


def test_variance_never_becomes_negative():
    prototypes = started(momentum=0.0)
    points = (100 + torch.zeros(C, K, D)).flatten(0, 1)
    for _ in range(3):
        prototypes.update_(points, torch.arange(C * K))
    assert (prototypes.variance >= 0).all()
    assert prototypes.similarity(points).isfinite().all()


def test_statistics_report_the_mean_variance_of_started_classes():
    prototypes = GaussianPrototypes(C, K, D, momentum=0.9)
    variance = torch.tensor([0.2, 9.0, 0.4, 9.0]).view(C, 1, 1).expand(C, K, D)
    classes = torch.tensor([True, False, True, False])
    prototypes.start_(classes, torch.zeros(C, K, D), variance)
    nothing = torch.zeros(0, D), torch.zeros(0, dtype=torch.int64)
    assert prototypes.update_(*nothing)["variance"].item() == pytest.approx(0.3)


def test_a_floor_of_zero_is_refused():
    with pytest.raises(ValueError, match="min_variance is 0"):
        started(min_variance=0)
