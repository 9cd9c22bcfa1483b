"""Pixel features of both domains and the prototypes in two dimensions (the paper's Fig. 4 and 8).

C classes, K prototypes a class, D embedding size, N pixels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from torch import nn

from ..predict.loading import Networks, refuse_other_classes
from .scenes import (
    Scene,
    first_source_set,
    first_test_set,
    labels_on_grid,
    load_scenes,
    pixel_features,
)

METHODS = ("tsne", "pca")
IGNORED = 255  # of the scenes' labels
_DOMAINS = ("source", "target")
_DOMAIN_COLORS = ("#0072b2", "#e69f00")  # told apart by the colour-blind, too
_MARKERS = ("o", "^")


class PixelSample(NamedTuple):
    """embeddings (N, D) float32; label (N,) and domain (N,) int64, 0 = source, 1 = target."""

    embeddings: NDArray[np.float32]
    label: NDArray[np.int64]
    domain: NDArray[np.int64]


def project(points: NDArray[np.float32], method: str = "tsne") -> NDArray[np.float64]:
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
        return np.asarray(PCA(2, random_state=0).fit_transform(points))
    perplexity = min(30.0, (len(points) - 1) / 3)
    tsne = TSNE(2, perplexity=perplexity, init="pca", random_state=0)
    return np.asarray(tsne.fit_transform(points), np.float64)


def sample_pixels(
    student: nn.Module, domains: Sequence[Sequence[Scene]], classes: Sequence[int], per_class: int
) -> PixelSample:
    """Draws labelled pixels at random, at most ``per_class`` of each domain and class.

    Args:
        domains: images of the source, and of the target.
    """
    rng = np.random.default_rng(0)
    parts = []
    for domain, scenes in enumerate(domains):
        pixels, labels = _labelled_pixels(student, scenes)
        for index in classes:
            own = rng.permutation(np.flatnonzero(labels == index))[:per_class]
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
    for dataset in (first_source_set(networks.cfg), first_test_set(networks.cfg)):
        refuse_other_classes(networks, dataset)
    domains = load_domains(networks.cfg, number)
    if student.prototype_head is None:
        chosen = choose_classes(names, classes, domains, range(len(names)))
        means = []
    else:
        prototypes = student.prototype_head.prototypes
        started = [c for c, on in enumerate(prototypes.started.tolist()) if on]
        chosen = choose_classes(names, classes, domains, started)
        means = [prototypes.mean[chosen].flatten(0, 1).cpu().numpy()]
    sample = sample_pixels(student, domains, chosen, per_class)
    points = project(np.concatenate([sample.embeddings, *means]), method)
    return _draw(sample, points, chosen, names, networks.metadata.stuff_colors, method)


def load_domains(cfg: CfgNode, number: int) -> list[list[Scene]]:
    """Images of the (first) source set and of the test set.

    Raises: ValueError: DATASETS.TEST is empty.
    """
    sets = first_source_set(cfg), first_test_set(cfg)
    return [load_scenes(cfg, name, number) for name in sets]


def choose_classes(
    names: Sequence[str],
    wanted: Sequence[str],
    domains: Sequence[Sequence[Scene]],
    possible: Sequence[int],
) -> list[int]:
    """The wanted classes that are possible; the most frequent ones of the target by default.

    Raises: ValueError: a name is unknown, or no class is left.
    """
    if unknown := [name for name in wanted if name not in names]:
        raise ValueError(f"unknown classes {unknown}; expected some of {', '.join(names)}")
    truths = [scene.truth for scene in domains[1]]
    indices = [names.index(name) for name in wanted] or most_frequent(truths, possible)
    chosen = [index for index in indices if index in possible]
    if not chosen:
        raise ValueError("none of the classes has prototypes in this checkpoint")
    return chosen


def most_frequent(labels: Sequence[NDArray[np.uint8]], classes: Sequence[int]) -> list[int]:
    """The eight classes with the most pixels, the most frequent first."""
    counts = sum(np.bincount(label.ravel(), minlength=256) for label in labels)
    return sorted(classes, key=lambda c: -counts[c])[:8]


def _draw(
    sample: PixelSample,
    points: NDArray[np.float64],
    classes: Sequence[int],
    names: Sequence[str],
    colors: Sequence[Sequence[int]],
    method: str,
) -> Figure:
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    pixels, prototypes = points[: len(sample.label)], points[len(sample.label) :]
    rgb = np.array(colors) / 255
    tints = (left, rgb[sample.label]), (right, np.array(_DOMAIN_COLORS)[sample.domain])
    owner = np.repeat(classes, len(prototypes) // len(classes))  # none without prototypes
    star = {"s": 150, "marker": "*", "edgecolors": "black", "linewidths": 0.9}
    for axes, tint in tints:
        for domain, marker in enumerate(_MARKERS):
            own = sample.domain == domain
            axes.scatter(*pixels[own].T, s=9, c=tint[own], marker=marker, alpha=0.55, lw=0)
        axes.scatter(*prototypes.T, c=rgb[owner], **star)
        axes.set(xticks=[], yticks=[])
    words = {"tsne": "t-SNE", "pca": "PCA"}[method]
    stars = " (stars: prototypes)" if len(prototypes) else ""
    left.set_title(f"{words} of pixel features, by class{stars}")
    right.set_title("the same, by domain")
    domains = [legend_mark(*each) for each in zip(_DOMAINS, ("0.4", "0.4"), _MARKERS)]
    left.legend(handles=[*(legend_mark(names[c], rgb[c]) for c in classes), *domains], fontsize=8)
    tinted = [legend_mark(*each) for each in zip(_DOMAINS, _DOMAIN_COLORS, _MARKERS)]
    right.legend(handles=tinted, fontsize=9)
    return figure


def legend_mark(label: str, color: Any, marker: str = "s") -> Line2D:
    """What stands beside a name in a legend."""
    return Line2D([], [], ls="", marker=marker, color=color, label=label)
