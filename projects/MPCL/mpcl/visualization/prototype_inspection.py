"""What the prototypes of a checkpoint do: usage, drift, spread, neighbours, nearest pixels.

C classes, K prototypes a class, D embedding size. Distances are per channel (root mean square over
the channels): 1 is one unit in every channel.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from tabulate import tabulate
from torch import Tensor

from ..checkpoint.weight_files import read
from ..predict.loading import Networks, refuse_other_classes
from ..prototypes.base import Prototypes
from .scenes import Scene, embed, first_source_set, labels_on_grid, load_scenes

_MEAN, _STARTED = "prototype_head.prototypes.mean", "prototype_head.prototypes.started"


@dataclass(frozen=True)
class Patch:
    """A pixel near a prototype: its place as a share of the image's height and width."""

    file: str
    y: float
    x: float
    similarity: float


@dataclass
class Prototype:
    """One prototype; None where nothing is known.

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

    @property
    def used(self) -> bool:
        """Whether it is the nearest of its class to any pixel looked at."""
        return any(self.pixels.values())


@dataclass
class Inspection:
    """Prototypes of the classes that have started, and (n, n) distances between them, in order."""

    prototypes: list[Prototype]
    waiting: list[str]  # classes without prototypes
    distances: list[list[float]]
    domains: dict[str, str]  # role -> data set
    # By role, of (10) on pixels of started classes; absent where there are none.
    accuracy: dict[str, float]

    @property
    def by_class(self) -> dict[str, list[Prototype]]:
        grouped = groupby(self.prototypes, key=lambda prototype: prototype.class_name)
        return {name: list(prototypes) for name, prototypes in grouped}


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
    sets = dict(zip(("source", "target"), (first_source_set(cfg), *cfg.DATASETS.TEST[:1])))
    for name in sets.values():
        refuse_other_classes(networks, name)
    seen = {role: _look(networks, load_scenes(cfg, name, number)) for role, name in sets.items()}
    names = list(networks.metadata.stuff_classes)
    started = head.prototypes.started.cpu()
    mean = head.prototypes.mean.cpu()[started].flatten(0, 1).double()
    distance = torch.cdist(mean, mean, compute_mode="donot_use_mm_for_euclid_dist")
    distance /= math.sqrt(mean.shape[1])
    accuracy = {
        role: float(each.right.sum() / each.won.sum())
        for role, each in seen.items()
        if each.won.any()
    }
    return Inspection(
        _describe(head.prototypes, names, seen, distance, weights, patches),
        [name for name, on in zip(names, started.tolist()) if not on],
        distance.tolist(),
        sets,
        accuracy,
    )


def _look(networks: Networks, scenes: Sequence[Scene]) -> _Pixels:
    """Pixels that have a label of a class that has started."""
    prototypes = networks.student.prototype_head.prototypes
    num_classes, num_prototypes = prototypes.idle.shape
    started, mean = prototypes.started.cpu(), prototypes.mean.flatten(0, 1).cpu()
    takes_part = torch.cat([started, torch.tensor([False])])  # by label; C = ignored
    found = _Pixels(num_classes * num_prototypes)
    for scene in scenes:
        if scene.truth is None:
            raise ValueError(
                f"{scene.file} has no label; prototypes are inspected on labelled sets"
            )
        embeddings = embed(networks.student, scene.record)
        height, width = embeddings.shape[1:]
        label = labels_on_grid(scene.truth, (height, width), num_classes).flatten()
        place = takes_part[label].nonzero().flatten()
        label, pixels = label[place], embeddings.flatten(1).t()[place.to(embeddings.device)]
        similarity = prototypes.similarity(pixels).cpu()
        best, k = similarity[torch.arange(len(label)), label].max(1)
        nearest = label * num_prototypes + k  # of the own class
        found.count += torch.bincount(nearest, minlength=len(mean))
        square = (pixels.cpu() - mean[nearest]).square().mean(1).double()
        found.squares.index_add_(0, nearest, square)
        # Eq. (10): of all classes.
        winner = similarity.masked_fill(~started[:, None], -torch.inf).flatten(1).argmax(1)
        found.won += torch.bincount(winner, minlength=len(mean))
        right = winner[winner // num_prototypes == label]
        found.right += torch.bincount(right, minlength=len(mean))
        for cluster in nearest.unique().tolist():
            first = int(best.masked_fill(nearest != cluster, -torch.inf).argmax())
            row, column = divmod(int(place[first]), width)
            y, x = (row + 0.5) / height, (column + 0.5) / width
            found.patches[cluster].append(Patch(scene.file, y, x, float(best[first])))
    return found


def _describe(
    prototypes: Prototypes,
    names: Sequence[str],
    seen: Mapping[str, _Pixels],
    distance: Tensor,
    weights: Sequence[Path],
    patches: int,
) -> list[Prototype]:
    """The prototypes of started classes; ``distance`` is between these."""
    shape, classes = prototypes.idle.shape, prototypes.started.cpu().nonzero().flatten()
    owner = classes.repeat_interleave(shape[1])
    same = owner[:, None] == owner
    sibling = distance.masked_fill(~same, torch.inf).fill_diagonal_(torch.inf).amin(1)
    other, neighbour = distance.masked_fill(same, torch.inf).min(1)
    count = torch.stack([pixels.count for pixels in seen.values()]).sum(0)
    squares = torch.stack([pixels.squares for pixels in seen.values()]).sum(0)
    spread = (squares / count).sqrt()  # NaN without a pixel
    share = count / count.view(shape).sum(1).clamp_min(1).repeat_interleave(shape[1])
    stored = prototypes.variance.mean(-1).sqrt() if hasattr(prototypes, "variance") else None
    moved = _drifts(prototypes, weights)
    found = []
    for row, c in enumerate(owner.tolist()):
        k = row % shape[1]
        index = c * shape[1] + k
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
                share=float(share[index]),
                purity={r: float(each.right[index] / each.won[index]) for r, each in won.items()},
                spread=_finite(spread[index]),
                deviation=None if stored is None else float(stored[c, k]),
                sibling=_finite(sibling[row]),
                other=_finite(other[row]),
                other_class=names[owner[neighbour[row]]] if other[row].isfinite() else None,
                drift={n: float(far[c, k]) for n, far in moved.items() if far[c, k].isfinite()},
                nearest=nearest[:patches],
            )
        )
    return found


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
        name: (mean - before).square().mean(-1).sqrt().masked_fill(~started[:, None], torch.nan)
        for name, (before, started) in origins.items()
        # Of the checkpoint itself under another name, such as the last periodic one, it would be 0.
        if before.shape == mean.shape and not (name != "start" and torch.equal(before, mean))
    }


def table(inspection: Inspection) -> str:
    """A text table with one line a prototype; of several earlier checkpoints it has the newest."""
    origins = list(dict.fromkeys(name for p in inspection.prototypes for name in p.drift))
    origins = list(dict.fromkeys([*origins[:1], *origins[-1:]]))

    def number(value: float | None, digits: int = 3) -> str:
        return "-" if value is None else f"{value:.{digits}f}"

    rows = []
    for p in inspection.prototypes:
        purity = {r: 100 * p.purity[r] if r in p.purity else None for r in inspection.domains}
        row = {"class": p.class_name if p.number == 1 else "", "no.": str(p.number)}
        row["usage\n%"] = number(100 * p.share, 1)
        row |= {f"purity %\n{role}": number(share, 1) for role, share in purity.items()}
        row |= {"spread": number(p.spread), "sigma": number(p.deviation)}
        row |= {"to\nsibling": number(p.sibling), "to\nother": number(p.other)}
        row["which is"] = p.other_class or "-"
        row |= {f"drift from\n{name}": number(p.drift.get(name)) for name in origins}
        rows.append(row)
    align = ["left", *["right"] * (len(rows[0]) - 1)]
    return tabulate(rows, headers="keys", colalign=align, disable_numparse=True)
