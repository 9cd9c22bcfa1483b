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
def test_similarity_is_the_log_density_of_torch_distributions(scale, divisor):
    prototypes = started(dim=256, scale=scale)
    points = torch.randn(N, 256)
    normal = Independent(Normal(prototypes.mean.double(), prototypes.variance.double().sqrt()), 1)
    expected = normal.log_prob(points.double()[:, None, None]) / divisor
    actual = prototypes.similarity(points).double()
    torch.testing.assert_close(
        actual, expected, atol=1e-5 * 256 / (256 if divisor > 1 else 1), rtol=2e-6
    )


def test_small_variances_count_as_the_floor_but_are_stored_raw():
    prototypes = started(min_variance=0.05)
    prototypes.variance[0] = 0.0
    points = torch.randn(N, D)
    normal = Independent(Normal(prototypes.mean[0], 0.05**0.5), 1)
    expected = normal.log_prob(points[:, None]) / D
    torch.testing.assert_close(prototypes.similarity(points)[:, 0], expected, atol=1e-4, rtol=1e-4)
    assert (prototypes.variance[0] == 0).all()


def test_gradient_with_respect_to_the_embedding_is_the_closed_form():
    # d/dF log N / D = -(F - mu) / variance / D
    prototypes = started()
    points = torch.randn(N, D, requires_grad=True)
    prototypes.similarity(points)[:, 2, 1].sum().backward()
    expected = -(points - prototypes.mean[2, 1]) / prototypes.variance[2, 1] / D
    torch.testing.assert_close(points.grad, expected.detach())


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
    classes = torch.tensor([True, False, True, False])
    variance = torch.zeros(C, K, D)
    variance[0], variance[2], variance[1] = 0.2, 0.4, 9.0
    prototypes.start_(classes, torch.zeros(C, K, D), variance)
    assert prototypes.statistics()["variance"].item() == pytest.approx(0.3)


def test_a_floor_of_zero_is_refused():
    with pytest.raises(ValueError, match="min_variance is 0"):
        GaussianPrototypes(C, K, D, momentum=0.9, min_variance=0)


def test_gradient_is_that_of_the_log_density():
    torch.manual_seed(0)
    prototypes = GaussianPrototypes(3, 2, 8, momentum=0.9)
    prototypes.start_(torch.ones(3, dtype=torch.bool), torch.randn(3, 2, 8), torch.rand(3, 2, 8))
    points = torch.randn(20, 8, requires_grad=True)
    direction = torch.randn(20, 3, 2)
    (gradient,) = torch.autograd.grad(prototypes.similarity(points), points, direction)
    floor = prototypes.variance.clamp_min(prototypes.min_variance)
    density = torch.distributions.Normal(prototypes.mean, floor.sqrt())
    expected = density.log_prob(points[:, None, None]).mean(-1)
    (reference,) = torch.autograd.grad(expected, points, direction)
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-5)
