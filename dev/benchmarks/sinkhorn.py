"""The clustering step, all classes at once, against a loop over classes; the solver against POT."""

import math

import torch
from torch import Tensor

from mpcl.prototypes.gaussian import GaussianPrototypes
from mpcl.prototypes.kmeans import random_prototypes
from mpcl.prototypes.numerics import sample_per_group
from mpcl.prototypes.sinkhorn import assign, balance

from .timing import Row, against, compare

EPSILON, SWEEPS, POOL_SIZE = 0.1, 10, 20_000
LOG_2_PI = math.log(2 * math.pi)


def add_arguments(parser) -> None:
    parser.add_argument("--pixels", type=int, default=51_200, help="default: %(default)s")
    parser.add_argument("--classes", type=int, nargs="+", default=[19, 150])
    parser.add_argument(
        "--prototypes", type=int, nargs="+", default=[5], help="per class, up to 20"
    )
    parser.add_argument("--dim", type=int, default=256, help="of the embeddings")
    parser.add_argument("--repeats", type=int, default=3)


def run(args) -> list[Row]:
    rows: list[Row] = []
    for classes in args.classes:
        for count in args.prototypes:
            problem = Problem(args.pixels, classes, count, args.dim, args.device)
            rows += _step(problem, args)
        rows += _solver(Problem(args.pixels, classes, args.prototypes[0], 16, args.device), args)
    return rows


class Problem:
    """Random embeddings with labels, and prototypes of every class."""

    def __init__(self, pixels: int, classes: int, count: int, dim: int, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.classes, self.count = classes, count
        self.embeddings = torch.randn(pixels, dim, generator=generator).to(device)
        self.label = torch.randint(0, classes, (pixels,), generator=generator).to(device)
        mean, variance = random_prototypes(classes, count, dim, seed=0, device=torch.device(device))
        self.prototypes = GaussianPrototypes(classes, count, dim, momentum=0.999).to(device)
        self.prototypes.start_(torch.ones(classes, dtype=torch.bool, device=device), mean, variance)
        self.name = f"{pixels:,} pixels, {classes} classes x {count}"

    def own_similarity(self) -> Tensor:
        return self.prototypes.own_similarity(self.embeddings, self.label)

    def pool(self, similarity: Tensor, places: int) -> tuple[Tensor, Tensor]:
        """Similarities (K, C, P) of the pixels in each place, and which places hold one (C, P)."""
        index, valid = sample_per_group(self.label, self.classes, places)
        return similarity[index].permute(2, 0, 1).contiguous(), valid


@torch.no_grad()
def all_at_once(problem: Problem) -> None:
    similarity = problem.own_similarity()
    pool = problem.pool(similarity, POOL_SIZE // problem.classes)
    table = balance(*pool, epsilon=EPSILON, sweeps=SWEEPS)
    k = assign(similarity, problem.label, table.potentials, EPSILON)
    problem.prototypes.update_(problem.embeddings, problem.label * problem.count + k)


@torch.no_grad()
def class_by_class(problem: Problem) -> None:
    """The straightforward way: gather a class, compare, solve, and average its pixels."""
    prototypes = problem.prototypes
    for c in range(problem.classes):
        pixels = problem.embeddings[problem.label == c]
        if len(pixels) == 0:
            continue
        mean, variance = prototypes.mean[c], prototypes.variance[c]
        similarity = _log_likelihood(pixels, mean, variance)
        zeros = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
        sample = similarity[: POOL_SIZE // problem.classes]
        everywhere = torch.ones(1, len(sample), dtype=torch.bool, device=pixels.device)
        table = balance(sample.T.unsqueeze(1), everywhere, epsilon=EPSILON, sweeps=SWEEPS)
        assigned = assign(similarity, zeros, table.potentials, EPSILON)
        member = torch.nn.functional.one_hot(assigned, problem.count).float()
        count = member.sum(0).clamp_min(1).unsqueeze(1)
        first, second = member.T @ pixels / count, member.T @ pixels.square() / count
        mean.lerp_(first, 1 - prototypes.momentum)
        spread = second - 2 * mean * first + mean.square()
        variance.lerp_(spread, 1 - prototypes.momentum)


def _log_likelihood(pixels: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """(n, K), averaged over the channels."""
    precision = 1 / variance
    distance = pixels.square() @ precision.T - 2 * pixels @ (mean * precision).T
    distance += (mean.square() * precision).sum(1)
    return -0.5 * (distance + variance.log().sum(1) + LOG_2_PI * mean.shape[1]) / mean.shape[1]


def _step(problem: Problem, args) -> list[Row]:
    ours = f"clustering step, {problem.name}"
    variants = {ours: lambda: all_at_once(problem), "loop": lambda: class_by_class(problem)}
    return against(
        ours, compare(variants, device=args.device, repeats=args.repeats), "loop", args.device
    )


def _solver(problem: Problem, args) -> list[Row]:
    """Sinkhorn alone on given similarities, against POT class by class on the same device."""
    import ot

    with torch.no_grad():
        similarity = problem.own_similarity()

    def theirs() -> None:
        for c in range(problem.classes):
            cost = -similarity[problem.label == c].double()
            if len(cost) == 0:
                continue
            rows = torch.full((len(cost),), 1 / len(cost), dtype=cost.dtype, device=cost.device)
            columns = torch.full_like(cost[0], 1 / problem.count)
            ot.bregman.sinkhorn_log(
                rows, columns, cost, EPSILON, numItermax=SWEEPS, stopThr=0, warn=False
            )

    pool = problem.pool(similarity, int(problem.label.bincount().max()))

    def mine() -> None:
        balance(*pool, epsilon=EPSILON, sweeps=SWEEPS)

    ours = f"Sinkhorn, {problem.name}"
    samples = compare({ours: mine, "POT": theirs}, device=args.device, repeats=args.repeats)
    return against(ours, samples, "POT", args.device)
