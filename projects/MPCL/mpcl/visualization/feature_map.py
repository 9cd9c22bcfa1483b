"""Pixel features of both domains and the prototypes in two dimensions (the paper's Fig. 4 and 8).

C classes, K prototypes a class, D embedding size, N pixels.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import nn

from ..predict.loading import Networks
from .scenes import Scene, first_test_set, labels_on_grid, load_scenes, pixel_features

METHODS = ("tsne", "pca")
IGNORED = 255  # of the scenes' labels
_DOMAIN_COLORS = ("#0072b2", "#e69f00")  # told apart by the colour-blind, too
_MARKERS = ("o", "^")


class PixelSample(NamedTuple):
    """embeddings (N, D) float32; label (N,) and domain (N,) int64 indices."""

    embeddings: NDArray[np.float32]
    label: NDArray[np.int64]
    domain: NDArray[np.int64]


def project(
    points: NDArray[np.float32], method: str = "tsne", seed: int = 0
) -> NDArray[np.float64]:
    """(N, D) -> (N, 2) by t-SNE (started from the principal components) or by PCA.

    Raises:
        ValueError: ``method`` is unknown, or there are fewer than four points.
        ImportError: scikit-learn is missing: pip install -e '.[report]'.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}, expected one of {METHODS}")
    if len(points) < 4:
        raise ValueError(f"{len(points)} points cannot be projected, expected at least 4")
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    if method == "pca":
        return np.asarray(PCA(2, random_state=seed).fit_transform(points))
    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=seed)
    return np.asarray(tsne.fit_transform(points), np.float64)


def sample_pixels(
    student: nn.Module,
    domains: Mapping[str, Sequence[Scene]],
    classes: Sequence[int],
    per_class: int,
    seed: int = 0,
) -> PixelSample:
    """Draws labelled pixels at random, at most ``per_class`` of each domain and class."""
    rng = np.random.default_rng(seed)
    parts = []
    for domain, scenes in enumerate(domains.values()):
        pixels, labels = _labelled_pixels(student, scenes)
        for index in classes:
            own = np.flatnonzero(labels == index)
            own = rng.permutation(own)[:per_class]
            parts.append((pixels[own], np.full(len(own), index), np.full(len(own), domain)))
    embeddings, label, domain_of = (np.concatenate(values) for values in zip(*parts))
    return PixelSample(embeddings, label, domain_of)


def _labelled_pixels(
    student: nn.Module, scenes: Sequence[Scene]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    pixels, labels = [], []
    for scene in scenes:
        assert scene.truth is not None
        embeddings = pixel_features(student, scene.record).cpu()
        label = labels_on_grid(scene.truth, embeddings.shape[1:], IGNORED).flatten()
        known = label < IGNORED
        pixels.append(embeddings.flatten(1).t()[known])
        labels.append(label[known])
    return torch.cat(pixels).numpy(), torch.cat(labels).numpy()


def feature_figure(
    networks: Networks,
    *,
    method: str = "tsne",
    classes: Sequence[str] = (),
    number: int = 16,
    per_class: int = 150,
) -> Figure:
    """Pixels of the source and the test set, coloured by class and by domain, with all prototypes
    where the network has some.

    Args:
        method: see :func:`project`.
        classes: by name; default: the eight classes with the most pixels (that have prototypes).
        number: of images of each set.
        per_class: pixels of each class and domain, at most.
    Raises:
        ValueError: a class is unknown, no chosen class has prototypes, or DATASETS.TEST is empty.
    """
    student, names = networks.student, list(networks.metadata.stuff_classes)
    domains = load_domains(networks.cfg, number)
    if student.prototype_head is None:
        chosen = choose_classes(names, classes, domains, range(len(names)))
        means = np.empty((0, 1), np.float32)
    else:
        prototypes = student.prototype_head.prototypes
        started = [c for c, on in enumerate(prototypes.started.tolist()) if on]
        chosen = choose_classes(names, classes, domains, started)
        means = prototypes.mean[chosen].flatten(0, 1).cpu().numpy()
    sample = sample_pixels(student, domains, chosen, per_class)
    points = project(np.concatenate([sample.embeddings, *([means] if len(means) else [])]), method)
    colors = networks.metadata.stuff_colors
    return _draw(sample, points, chosen, names, colors, list(domains), method)


def load_domains(cfg: CfgNode, number: int) -> dict[str, list[Scene]]:
    """Images of the (first) source set and of the test set.

    Raises: ValueError: DATASETS.TEST is empty.
    """
    sets = {"source": cfg.DATASETS.TRAIN[0], "target": first_test_set(cfg)}
    return {role: load_scenes(cfg, name, number) for role, name in sets.items()}


def choose_classes(
    names: Sequence[str],
    wanted: Sequence[str],
    domains: Mapping[str, Sequence[Scene]],
    possible: Sequence[int],
) -> list[int]:
    """The wanted classes that are possible; the most frequent ones of the target by default.

    Raises: ValueError: a name is unknown, or no class is left.
    """
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"unknown classes {unknown}; expected some of {', '.join(names)}")
    truths = [scene.truth for scene in domains["target"] if scene.truth is not None]
    indices = [names.index(name) for name in wanted] or most_frequent(truths, possible)
    chosen = [index for index in indices if index in possible]
    if not chosen:
        raise ValueError("none of the classes has prototypes in this checkpoint")
    return chosen


def most_frequent(
    labels: Sequence[NDArray[np.uint8]], classes: Sequence[int], number: int = 8
) -> list[int]:
    """Picks the classes with the most pixels, the most frequent first."""
    counts = sum(np.bincount(label.ravel(), minlength=256) for label in labels)
    return sorted(classes, key=lambda c: -counts[c])[:number]


def _draw(
    sample: PixelSample,
    points: NDArray[np.float64],
    classes: Sequence[int],
    names: Sequence[str],
    colors: Sequence[Sequence[int]],
    domains: Sequence[str],
    method: str,
) -> Figure:
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    pixels, prototypes = points[: len(sample.label)], points[len(sample.label) :]
    rgb = {c: tuple(value / 255 for value in colors[c]) for c in classes}
    by_class = [rgb[int(c)] for c in sample.label]
    by_domain = [_DOMAIN_COLORS[int(d)] for d in sample.domain]
    for axes, tint in ((left, by_class), (right, by_domain)):
        for domain in range(len(domains)):
            own = sample.domain == domain
            shade = [color for color, chosen in zip(tint, own) if chosen]
            axes.scatter(*pixels[own].T, s=9, c=shade, marker=_MARKERS[domain], alpha=0.55, lw=0)
        owner = np.repeat(classes, len(prototypes) // len(classes))  # none without prototypes
        fill = [rgb[int(c)] for c in owner]
        axes.scatter(*prototypes.T, s=150, c=fill, marker="*", edgecolors="black", linewidths=0.9)
        axes.set(xticks=[], yticks=[])
    words = {"tsne": "t-SNE", "pca": "PCA"}[method]
    stars = " (stars: prototypes)" if len(prototypes) else ""
    left.set_title(f"{words} of pixel features, by class{stars}")
    right.set_title("the same, by domain")
    _legends(left, right, [names[c] for c in classes], list(rgb.values()), domains)
    return figure


def _legends(
    left: Axes, right: Axes, names: Sequence[str], colors: Sequence[tuple], domains: Sequence[str]
) -> None:
    def handle(label: str, color: object, marker: str) -> Line2D:
        return Line2D([], [], ls="", marker=marker, color=color, label=label)  # type: ignore[arg-type]

    marks = [handle(d, "0.4", m) for d, m in zip(domains, _MARKERS)]
    left.legend(handles=[*map(handle, names, colors, "s" * len(names)), *marks], fontsize=8)
    tints = [handle(*each) for each in zip(domains, _DOMAIN_COLORS, _MARKERS)]
    right.legend(handles=tints, fontsize=9)
