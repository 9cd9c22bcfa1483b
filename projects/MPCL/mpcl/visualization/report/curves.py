"""Series over iterations, as charts that plotly.js draws.

A chart is a dict: ``id``, ``title``, ``unit``, ``help`` (a sentence), and ``traces``, each with
``run`` (its index), ``x``, ``y``, ``dash``, ``symbol`` and ``name``.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

from ...engine.alarms import CONFIDENT, ENTROPY
from ...evaluation.runs import NETWORKS
from .contents import RunContents

Chart = dict[str, Any]

MOST_POINTS = 1000  # of a curve

# Title, unit and meaning by key; keys that are not named appear under their own name.
_KNOWN = {
    "total_loss": ("Total loss", "", "sum of the losses below"),
    "loss_sem_seg": ("Source loss", "", "cross-entropy on labelled source images"),
    "loss_sem_seg_mix": ("Mixed loss", "", "cross-entropy on class-mixed images"),
    "loss_sem_seg_masked": ("Masked loss", "", "cross-entropy on masked target images (MIC)"),
    "loss_contrast": ("Contrastive loss", "", "pixels against prototypes, weighted"),
    "loss_consistency": ("Consistency loss", "", "prototypes against pseudo-labels, weighted"),
    "loss_feature_distance": ("Feature distance", "", "to the frozen ImageNet encoder"),
    "lr": ("Learning rate", "", "of the first parameter group"),
    CONFIDENT: ("Confident pseudo-labels", "share", "of pixels above the confidence threshold"),
    ENTROPY: ("Class entropy of pseudo-labels", "share", "1 = all classes alike, 0 = a single one"),
    "teacher/momentum": ("Teacher momentum", "", "weight kept of the teacher"),
    "prototypes/usage_entropy": (
        "Prototype usage",
        "share",
        "evenness within a class: 1 = all prototypes alike, 0 = a single one",
    ),
    "prototypes/dead": ("Dead prototypes", "", "without a pixel for 1,000 updates"),
    "prototypes/started": ("Classes with prototypes", "", ""),
    "prototypes/drift": ("Prototype drift", "", "root mean square step of an update"),
    "prototypes/variance": ("Prototype variance", "", "mean stored variance"),
    "prototypes/marginal_violation": ("Sinkhorn violation", "", "0 = perfectly balanced"),
    "prototypes/bank_fill_mean": ("Feature bank", "share", "filled, mean over classes"),
    "prototypes/bank_fill_min": ("Feature bank, emptiest class", "share", "filled"),
    "time": ("Time of an iteration", "s", "without evaluations"),
    "data_time": ("Waiting for data", "s", "part of the time of an iteration"),
    "gpu/max_mem_MiB": ("Peak GPU memory", "MiB", "allocated by tensors"),
    "gpu/max_reserved_MiB": ("Reserved GPU memory", "MiB", "peak, with the allocator's gaps"),
    "[metric] max_mem_MiB": ("Peak memory of the process", "MiB", ""),
    "skipped_steps": ("Skipped steps", "", "whose loss or gradient was not finite, in all"),
}
_HIDDEN = {"iteration", "eta_seconds"}
_SCORE = re.compile("sem_seg(_student)?/")
_COST = ("time", "data_time", "gpu/", "[metric]", "rank_data_time")


def quality_charts(runs: Sequence[RunContents]) -> list[Chart]:
    """Mean IoU of teacher and student over the evaluations, one chart for each data set and
    headline."""
    datasets = dict.fromkeys(name for run in runs for _, s in run.evaluations for name in s)
    return [
        {
            "id": f"{metric.lower()}-{dataset}",
            "title": f"{metric} on {dataset}",
            "unit": "%",
            "help": "● solid: teacher, ◇ dashed: student",
            "traces": [
                _trace(index, f"{run.name}, {network}", points, dashed=network == "student")
                for index, run in enumerate(runs)
                for network in NETWORKS
                if (points := _means(run, dataset, network, metric))
            ],
        }
        for dataset in datasets
        for metric in dict.fromkeys(run.metrics[0] for run in runs)
    ]


def _means(run: RunContents, dataset: str, network: str, metric: str) -> list[tuple[int, float]]:
    found = [(i, scores.get(dataset, {}).get(network, {})) for i, scores in run.evaluations]
    return [(i, scores[metric]) for i, scores in found if metric in scores]


def _trace(run: int, name: str, points: list[tuple[int, float]], dashed: bool = False) -> Chart:
    return {
        "run": run,
        "name": name,
        "dash": "dash" if dashed else "solid",
        "symbol": "diamond-open" if dashed else "circle",
        "x": [x for x, _ in points],
        "y": [float(f"{y:.5g}") for _, y in points],
    }


def training_charts(runs: Sequence[RunContents]) -> dict[str, list[Chart]]:
    """The other curves of metrics.json, by heading."""
    keys = list(dict.fromkeys(key for run in runs for row in run.rows for key in row))
    order = {key: i for i, key in enumerate(_KNOWN)}
    keys = [key for key in keys if key not in _HIDDEN and not _SCORE.search(key)]
    keys.sort(key=lambda key: (order.get(key, len(order)), key))
    headings: dict[str, Callable[[str], bool]] = {
        "Losses": lambda key: "loss" in key and "/" not in key,
        "Learning rate and pseudo-labels": lambda key: key == "lr" or key.startswith("pseudo"),
        "Prototypes": lambda key: key.startswith("prototypes/"),
        "Timings and memory": lambda key: key.startswith(_COST),
        "More": lambda key: True,
    }
    charts: dict[str, list[Chart]] = {heading: [] for heading in headings}
    for key in keys:
        heading = next(name for name, belongs in headings.items() if belongs(key))
        charts[heading].append(_chart(runs, key))
    return {heading: found for heading, found in charts.items() if found}


def _chart(runs: Sequence[RunContents], key: str) -> Chart:
    title, unit, words = _KNOWN.get(key, (key, "", ""))
    traces = []
    for index, run in enumerate(runs):
        found = [(int(row["iteration"]), row[key]) for row in run.rows if key in row]
        if points := [(x, y) for x, y in found if math.isfinite(y)]:
            traces.append(_trace(index, run.name, thin_out(points)))
    return {"id": key, "title": title, "unit": unit, "help": words, "traces": traces}


def thin_out(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Keeps at most MOST_POINTS of the points, evenly spaced, the last one among them."""
    step = -(-len(points) // MOST_POINTS)
    return points[::-1][::step][::-1]
