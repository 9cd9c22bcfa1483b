"""The clustering step, all classes at once, against a loop over classes; the solver against POT."""

import torch
from torch import Tensor

from mpcl.prototypes.gaussian import GaussianPrototypes
from mpcl.prototypes.kmeans import random_prototypes
from mpcl.prototypes.sinkhorn import assign, balance

from .timing import Row, against, compare

EPSILON, SWEEPS = 0.1, 10


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
        similarity = self.prototypes.similarity(self.embeddings)
        index = self.label.view(-1, 1, 1).expand(-1, 1, self.count)
        return similarity.gather(1, index).squeeze(1)


@torch.no_grad()
def all_at_once(problem: Problem) -> None:
    similarity = problem.own_similarity()
    table = balance(similarity, problem.label, problem.classes, epsilon=EPSILON, sweeps=SWEEPS)
    k = assign(similarity, problem.label, table.potentials, EPSILON)
    problem.prototypes.update_(problem.embeddings, problem.label * problem.count + k)


@torch.no_grad()
def class_by_class(problem: Problem) -> None:
    """The straightforward way: gather a class, solve it, update its prototypes."""
    prototypes = problem.prototypes
    for c in range(problem.classes):
        pixels = problem.embeddings[problem.label == c]
        if len(pixels) == 0:
            continue
        one = _only(prototypes, c)
        similarity = one.similarity(pixels).squeeze(1)
        zeros = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
        table = balance(similarity, zeros, 1, epsilon=EPSILON, sweeps=SWEEPS)
        one.update_(pixels, assign(similarity, zeros, table.potentials, EPSILON))
        prototypes.mean[c], prototypes.variance[c] = one.mean[0], one.variance[0]


def _only(prototypes: GaussianPrototypes, c: int) -> GaussianPrototypes:
    one = GaussianPrototypes(1, *prototypes.mean.shape[1:], momentum=0.999).to(
        prototypes.mean.device
    )
    started = torch.ones(1, dtype=torch.bool, device=prototypes.mean.device)
    one.start_(started, prototypes.mean[c : c + 1], prototypes.variance[c : c + 1])
    return one


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

    def mine() -> None:
        balance(similarity, problem.label, problem.classes, epsilon=EPSILON, sweeps=SWEEPS)

    ours = f"Sinkhorn, {problem.name}"
    samples = compare({ours: mine, "POT": theirs}, device=args.device, repeats=args.repeats)
    return against(ours, samples, "POT", args.device)
