"""What the prototypes of a checkpoint do: usage, drift, spread, neighbours, nearest pixels.

C classes, K prototypes a class, D embedding size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tabulate import tabulate
from torch import Tensor

from ..checkpoint.weight_files import read
from ..predict.loading import Networks
from ..prototypes.base import Prototypes
from .prototype_geometry import (
    assign_to_own_class,
    drift,
    nearest_neighbours,
    nearest_of_all,
    pairwise_distance,
    usage_share,
)
from .scenes import Scene, embed, labels_on_grid, load_scenes

_MEAN, _STARTED = "prototype_head.prototypes.mean", "prototype_head.prototypes.started"


class Patch(NamedTuple):
    """A pixel near a prototype: its place as a share of the image's height and width."""

    file: str
    y: float
    x: float
    similarity: float


@dataclass
class Prototype:
    """One prototype. Distances are per channel (root mean square); None where nothing is known.

    Attributes:
        number: from 1.
        idle: updates since it got its last pixel in training.
        dead: idle for 1,000 updates or more.
        pixels: by domain, labelled pixels of its class that are nearest to it.
        share: of all of these of its class.
        purity: by domain, of the labelled pixels that are nearer to it than to any other prototype
            of any class, the share that is of its class; without such pixels the domain is absent.
        spread: standard deviation of these pixels about it.
        deviation: stored standard deviation, of a Gaussian.
        sibling: distance to the nearest prototype of its class; ``other`` of another class.
        drift: by what it is measured from, how far it has moved since.
        nearest: the most similar pixels, one an image.
    """

    class_name: str
    number: int
    idle: int
    dead: bool
    pixels: dict[str, int]
    share: float
    purity: dict[str, float]
    spread: float | None
    deviation: float | None
    sibling: float | None
    other: float | None
    other_class: str | None
    drift: dict[str, float] = field(default_factory=dict)
    nearest: list[Patch] = field(default_factory=list)


@dataclass
class Inspection:
    """Prototypes of the classes that have started, and (n, n) distances between them, in order."""

    prototypes: list[Prototype]
    waiting: list[str]  # classes without prototypes
    distances: list[list[float]]
    domains: dict[str, str]  # role -> data set
    # By role, of (10) on pixels of started classes; absent where there are none.
    accuracy: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        content = asdict(self)
        for prototype in content["prototypes"]:
            prototype["nearest"] = [patch._asdict() for patch in prototype["nearest"]]
        return content

    @property
    def unused(self) -> list[Prototype]:
        """The prototypes that no pixel of the images looked at is nearest to."""
        return [p for p in self.prototypes if not any(p.pixels.values())]


class _Pixels:
    """Sums over the pixels of all images, and the best pixel of each image and prototype."""

    def __init__(self, num_clusters: int) -> None:
        self.count = torch.zeros(num_clusters, dtype=torch.int64)
        self.won = torch.zeros(num_clusters, dtype=torch.int64)  # pixels, of whatever class
        self.right = torch.zeros(num_clusters, dtype=torch.int64)  # of these, of its own class
        self.squares = torch.zeros(num_clusters, dtype=torch.float64)
        self.patches: list[list[Patch]] = [[] for _ in range(num_clusters)]


@torch.no_grad()
def inspect(
    networks: Networks, *, number: int = 20, patches: int = 4, weights: Sequence[Path] = ()
) -> Inspection:
    """Looks at source images and at labelled target images (DATASETS.TEST).

    Args:
        number: of images of each domain.
        patches: nearest pixels of each prototype.
        weights: earlier checkpoints to measure the drift from, oldest first.
    Raises: ValueError: the network has no prototypes, or none has started.
    """
    head, cfg = networks.student.prototype_head, networks.cfg
    if head is None or not bool(head.prototypes.started.any()):
        raise ValueError("the checkpoint has no prototypes, or was saved before they started")
    sets = dict(zip(("source", "target"), (cfg.DATASETS.TRAIN[0], *cfg.DATASETS.TEST[:1])))
    seen = {role: _look(networks, load_scenes(cfg, name, number)) for role, name in sets.items()}
    names = list(networks.metadata.stuff_classes)
    moved = _drifts(head.prototypes, weights)
    prototypes, kept = _describe(networks, names, seen, moved, patches)
    distance = pairwise_distance(head.prototypes.mean.cpu())[kept][:, kept]
    waiting = [name for name, on in zip(names, head.prototypes.started.tolist()) if not on]
    accuracy = {
        role: float(each.right.sum() / each.won.sum())
        for role, each in seen.items()
        if each.won.any()
    }
    return Inspection(prototypes, waiting, distance.tolist(), sets, accuracy)


def _look(networks: Networks, scenes: Sequence[Scene]) -> _Pixels:
    prototypes = networks.student.prototype_head.prototypes
    started = prototypes.started.cpu()
    num_classes, num_prototypes = prototypes.idle.shape
    found = _Pixels(num_classes * num_prototypes)
    for scene in scenes:
        if scene.truth is None:
            raise ValueError(
                f"{scene.file} has no label; prototypes are inspected on labelled sets"
            )
        embeddings = embed(networks.student, scene.record)
        height, width = embeddings.shape[1:]
        pixels = embeddings.flatten(1).t()
        label = labels_on_grid(scene.truth, (height, width), num_classes).flatten()
        similarity = prototypes.similarity(pixels).cpu()
        own = assign_to_own_class(similarity, label, started)
        centre = prototypes.mean.flatten(0, 1).cpu()[own.cluster]
        square = (pixels.cpu()[own.pixel] - centre).square().mean(1).double()
        found.count += torch.bincount(own.cluster, minlength=len(found.count))
        winner, truth = nearest_of_all(similarity, label, started)
        right = winner[winner // num_prototypes == truth]
        found.won += torch.bincount(winner, minlength=len(found.won))
        found.right += torch.bincount(right, minlength=len(found.right))
        found.squares.index_add_(0, own.cluster, square)
        for cluster in own.cluster.unique().tolist():
            mine = own.cluster == cluster
            best = int(own.similarity.masked_fill(~mine, -torch.inf).argmax())
            row, column = divmod(int(own.pixel[best]), width)
            place = ((row + 0.5) / height, (column + 0.5) / width)
            found.patches[cluster].append(Patch(scene.file, *place, float(own.similarity[best])))
    return found


def _describe(
    networks: Networks,
    names: Sequence[str],
    seen: Mapping[str, _Pixels],
    moved: Mapping[str, Tensor],
    patches: int,
) -> tuple[list[Prototype], list[int]]:
    """The prototypes of started classes, and their indices."""
    prototypes = networks.student.prototype_head.prototypes
    shape, started = prototypes.idle.shape, prototypes.started.cpu()
    near = nearest_neighbours(pairwise_distance(prototypes.mean.cpu()), shape[1], started)
    count = torch.stack([pixels.count for pixels in seen.values()]).sum(0)
    squares = torch.stack([pixels.squares for pixels in seen.values()]).sum(0)
    share, spread = usage_share(count.view(shape)), (squares / count).sqrt()  # NaN without a pixel
    stored = prototypes.variance.mean(-1).sqrt() if hasattr(prototypes, "variance") else None
    kept = [c * shape[1] + k for c in started.nonzero().flatten().tolist() for k in range(shape[1])]
    found = []
    for index in kept:
        c, k = divmod(index, shape[1])
        won = {role: each for role, each in seen.items() if each.won[index]}
        nearest = [patch for each in seen.values() for patch in each.patches[index]]
        nearest.sort(key=lambda patch: -patch.similarity)
        found.append(
            Prototype(
                class_name=names[c],
                number=k + 1,
                idle=int(prototypes.idle[c, k]),
                dead=bool(prototypes.dead[c, k]),
                pixels={role: int(each.count[index]) for role, each in seen.items()},
                share=float(share[c, k]),
                purity={r: float(each.right[index] / each.won[index]) for r, each in won.items()},
                spread=_finite(spread[index]),
                deviation=None if stored is None else float(stored[c, k]),
                sibling=_finite(near.sibling[c, k]),
                other=_finite(near.other[c, k]),
                other_class=names[near.other_class[c, k]] if near.other[c, k] < torch.inf else None,
                drift={n: float(far[c, k]) for n, far in moved.items() if far[c, k].isfinite()},
                nearest=nearest[:patches],
            )
        )
    return found, kept


def _finite(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def _drifts(prototypes: Prototypes, weights: Sequence[Path]) -> dict[str, Tensor]:
    """The (C, K) drift, by what it is measured from; NaN for classes that had not started then."""
    mean = prototypes.mean.cpu()
    origins = {"start": (prototypes.start_mean.cpu(), prototypes.started.cpu())}
    for path in weights:
        state = read(str(path))
        model = state.get("model", state)
        if _MEAN in model:
            origins[path.stem] = (model[_MEAN], model[_STARTED])
    return {
        name: drift(before, mean).masked_fill(~started.unsqueeze(1), torch.nan)
        for name, (before, started) in origins.items()
        # Of the checkpoint itself under another name, such as the last periodic one, it would be 0.
        if before.shape == mean.shape and not (name != "start" and torch.equal(before, mean))
    }


def table(inspection: Inspection) -> str:
    """A text table with one line a prototype; of several earlier checkpoints it has the newest."""
    origins = list(dict.fromkeys(name for p in inspection.prototypes for name in p.drift))
    origins = list(dict.fromkeys([*origins[:1], *origins[-1:]]))
    domains = list(inspection.domains)
    rows = [
        [
            p.class_name if p.number == 1 else "",
            p.number,
            100 * p.share,
            *(100 * p.purity[domain] if domain in p.purity else None for domain in domains),
            p.spread,
            p.deviation,
            p.sibling,
            p.other,
            p.other_class,
            *(p.drift.get(name) for name in origins),
        ]
        for p in inspection.prototypes
    ]
    headers = ["class", "no.", "usage\n%", *(f"purity %\n{name}" for name in domains)]
    headers += ["spread", "sigma", "to\nsibling", "to\nother", "which is"]
    headers += [f"drift from\n{name}" for name in origins]
    formats = ["", "d", ".1f", *[".1f"] * len(domains)]
    formats += [*[".3f"] * 4, "", *[".3f"] * len(origins)]
    return tabulate(rows, headers=headers, floatfmt=formats, missingval="-")
