"""How often each class is there, and how often rare-class sampling asks for it."""

from typing import NamedTuple

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from matplotlib.figure import Figure

from ..data.build import rare_class_sampler
from ..data.statistics import class_statistics
from .scenes import first_source_set


class Frequencies(NamedTuple):
    """How often each class is there and is drawn: (C,) float64, but ``images``, the int64 number of
    files that a class is drawn from."""

    pixels: np.ndarray  # share of the labelled pixels
    asked: np.ndarray  # probability that a draw asks for the class
    shown: np.ndarray  # share of draws whose image shows the class enough to be drawn for it
    images: np.ndarray


def frequencies(cfg: CfgNode, draws: int = 10000) -> Frequencies:
    """Of the source sets with DATALOADER.RARE_CLASS as it is set.

    Args:
        draws: from which ``shown`` is estimated.
    Raises:
        BadFile: a label cannot be read.
        ValueError: sets are drawn in shares, each by its own classes; or not by class at all.
    """
    if {name for name, _ in cfg.DATASETS.SHARES} & set(cfg.DATASETS.TRAIN):
        raise ValueError(
            "DATASETS.SHARES draws from each set by its own classes; look at one set: "
            'DATASETS.SHARES "()" DATASETS.TRAIN "(\'name\',)"'
        )
    if not cfg.DATALOADER.RARE_CLASS.ENABLED:
        raise ValueError(
            "DATALOADER.RARE_CLASS.ENABLED is False: every image is drawn alike, and no class is "
            "asked for; set it True to see what it would draw"
        )
    first_source_set(cfg)
    statistics = [class_statistics(name) for name in cfg.DATASETS.TRAIN]
    counts = np.concatenate([s.counts for s in statistics])
    sampler = rare_class_sampler(cfg, statistics)
    member = np.zeros((len(counts), counts.shape[1]))
    for c, files in enumerate(sampler.candidates):
        member[files, c] = 1
    rng = np.random.default_rng(cfg.SEED)
    files = [sampler.draw(rng)[1] for _ in range(draws)]
    return Frequencies(
        pixels=counts.sum(0) / counts.sum(),
        asked=sampler.probabilities,
        shown=member[files].mean(0),
        images=member.sum(0).astype(np.int64),
    )


def rare_class_figure(cfg: CfgNode, found: Frequencies) -> Figure:
    """Bars on a logarithmic axis, the rarest class on top."""
    names = MetadataCatalog.get(first_source_set(cfg)).stuff_classes
    order = np.argsort(-found.pixels)
    place = np.arange(len(order))
    figure = Figure(figsize=(9, 1.6 + 0.42 * len(order)), layout="constrained")
    axes = figure.subplots()
    bars = (
        ("share of pixels", found.pixels, "#999999"),
        ("drawn for this class", found.asked, "#0072b2"),
        ("shown by the drawn image", found.shown, "#e69f00"),
    )
    for offset, (label, values, color) in enumerate(bars):
        axes.barh(place + 0.27 * (1 - offset), values[order], 0.26, label=label, color=color)
    axes.set_yticks(place, [f"{names[c]} ({found.images[c]} images)" for c in order])
    axes.set(xscale="log", xlim=(max(found.pixels[found.pixels > 0].min() / 3, 1e-6), 1.3))
    axes.margins(y=0.01)
    axes.set_xlabel("share (logarithmic)")
    axes.set_title(f"Rare-class sampling, T = {cfg.DATALOADER.RARE_CLASS.TEMPERATURE:g}")
    figure.legend(loc="outside lower center", ncols=3, fontsize=9)  # below the axis and its label
    axes.grid(axis="x", alpha=0.3)
    return figure
