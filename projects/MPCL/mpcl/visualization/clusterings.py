"""How well one centroid, several centroids and several Gaussians a class describe the same features
(the paper's Fig. 4 and 8(a)).

C classes, K prototypes a class, D channels, N pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..predict.loading import Networks
from .feature_map import choose_classes, legend_mark, load_domains, project, sample_pixels

_DARKENED = 0.55


class Clustering(NamedTuple):
    """Prototypes fitted to the features of each class.

    Attributes:
        name: for the picture.
        means: (C, K, D).
        variances: (C, K, D); ones = Euclidean distances.
    """

    name: str
    means: NDArray[np.float64]
    variances: NDArray[np.float64]

    def similarity(self, points: NDArray[np.float32]) -> NDArray[np.float64]:
        """(N, C, K): the log density of each Gaussian, up to a constant, Eq. (9)."""
        difference = points[:, None, None] - self.means
        quadratic = (difference**2 / self.variances).sum(-1)
        return -0.5 * (quadratic + np.log(self.variances).sum(-1))


def fit(
    points: NDArray[np.float32], label: NDArray[np.int64], names: Sequence[str], number: int
) -> list[Clustering]:
    """One centroid, ``number`` centroids (K-means) and ``number`` diagonal Gaussians (EM) a class.

    Args:
        points: (N, D).
        label: (N,) indices into ``names``.
        names: of the C classes.
    Raises:
        ValueError: a class has fewer than two pixels for each prototype.
        ImportError: scikit-learn is missing: pip install -e '.[report]'.
    """
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    single, centroids, gaussians = [], [], []
    for index, name in enumerate(names):
        own = points[label == index].astype(np.float64)
        if len(own) < 2 * number:
            raise ValueError(
                f"class {name} has {len(own)} pixels for {number} prototypes, expected "
                f"{2 * number} or more: show more images, or fewer prototypes"
            )
        single.append(own.mean(0, keepdims=True))
        centroids.append(KMeans(number, n_init=4, random_state=0).fit(own).cluster_centers_)
        # The floor of the training's variances, PROTOTYPES.MIN_VARIANCE, at embeddings of scale 1.
        options = {"covariance_type": "diag", "reg_covar": 0.05, "n_init": 2, "random_state": 0}
        gaussians.append(GaussianMixture(number, **options).fit(own))
    one, several = np.stack(single), np.stack(centroids)
    means = np.stack([mixture.means_ for mixture in gaussians])
    variances = np.stack([mixture.covariances_ for mixture in gaussians])
    return [
        Clustering("one centroid", one, np.ones_like(one)),
        Clustering(f"{number} centroids", several, np.ones_like(several)),
        Clustering(f"{number} Gaussians", means, variances),
    ]


def clustering_figure(
    networks: Networks,
    *,
    method: str = "tsne",
    classes: Sequence[str] = (),
    number: int = 16,
    per_class: int = 150,
    prototypes: int = 5,
) -> Figure:
    """Three panels over the same pixels of the network, with or without a prototype head: which
    prototype of its class each pixel belongs to (shade), and what share of *other* pixels, which
    the prototypes were not fitted to, is nearest to a prototype of its own class, Eq. (10).

    Args:
        method, classes, number, per_class: see :func:`.feature_map.feature_figure`.
        prototypes: K.
    Raises: ValueError: a class is unknown or has too few pixels, or DATASETS.TEST is empty.
    """
    names = list(networks.metadata.stuff_classes)
    domains = load_domains(networks.cfg, number)
    chosen = choose_classes(names, classes, domains, range(len(names)))
    sample = sample_pixels(networks.student, domains, chosen, 2 * per_class)
    order = np.random.default_rng(0).permutation(len(sample.label))
    label = np.array([chosen.index(c) for c in sample.label])
    half, rest = np.array_split(order, 2)
    points, own, other = sample.embeddings[half], label[half], sample.embeddings[rest]
    fitted = fit(points, own, [names[c] for c in chosen], prototypes)
    stars = [clustering.means.reshape(-1, points.shape[1]) for clustering in fitted]
    plane = project(np.concatenate([points, *stars]).astype(np.float32), method)
    parts = np.split(plane, np.cumsum([len(points), *map(len, stars[:-1])]))
    figure = Figure(figsize=(17, 6.2), layout="constrained")
    rgb = np.array([networks.metadata.stuff_colors[c] for c in chosen]) / 255
    all_axes = figure.subplots(1, 3)
    for axes, clustering, positions in zip(all_axes, fitted, parts[1:]):
        nearest = clustering.similarity(points)[np.arange(len(points)), own].argmax(1)
        _panel(axes, parts[0], rgb[own], nearest / max(1, prototypes - 1), positions)
        right = (clustering.similarity(other).max(2).argmax(1) == label[rest]).mean()
        axes.set_title(f"{clustering.name} a class: {right:.1%} of other pixels in their class")
    handles = [legend_mark(names[c], color) for color, c in zip(rgb, chosen)]
    all_axes[0].legend(handles=handles, fontsize=8)
    return figure


def _panel(
    axes: Axes,
    plane: NDArray[np.float64],
    rgb: NDArray[np.float64],
    shade: NDArray[np.float64],
    stars: NDArray[np.float64],
) -> None:
    """Pixels in the colours of their classes, each prototype's in a darkness of its own."""
    tint = rgb * (1 - _DARKENED * shade[:, None])
    axes.scatter(*plane.T, s=9, c=tint, alpha=0.7, lw=0)
    axes.scatter(*stars.T, s=120, c="white", marker="*", edgecolors="black", linewidths=0.9)
    axes.set(xticks=[], yticks=[])
