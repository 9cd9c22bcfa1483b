"""Scores over iterations, of one run or several, each over its seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ..runs import Experiment, Run, metrics_rows, scores_by_dataset

# Okabe's and Ito's, told apart by the colour-blind, too; from the ninth run on, with dashes.
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000", "#999999")


class Curve(NamedTuple):
    """Iterations, and mean and sample standard deviation (0 for one seed) of the seeds there."""

    iterations: list[int]
    mean: list[float]
    sd: list[float]


def score_curve(runs: Sequence[Run], network: str, metric: str) -> Curve:
    """Of the first test set, at the iterations at which all seeds were evaluated.

    Args:
        network: ``teacher`` or ``student``; the student stands in where there is no teacher.
    """
    by_seed = [_scores(run, network, metric) for run in runs]
    common = sorted(set.intersection(*(set(scores) for scores in by_seed)))
    values = np.array([[scores[i] for i in common] for scores in by_seed])
    sd = values.std(0, ddof=1) if len(runs) > 1 else np.zeros(len(common))
    return Curve(common, values.mean(0).tolist(), sd.tolist())


def _scores(run: Run, network: str, metric: str) -> dict[int, float]:
    tests, found = run.config["DATASETS"]["TEST"], {}
    for row in metrics_rows(run.folder / "metrics.json"):
        networks = scores_by_dataset(row, tests).get(tests[0], {})
        score = networks.get(network, networks.get("student", {})).get(metric)
        if score is not None:
            found[min(row["iteration"] + 1, run.config["SOLVER"]["MAX_ITER"])] = score
    return found


def score_figure(
    experiments: Sequence[Experiment], network: str = "teacher", metric: str = "mIoU"
) -> Figure:
    """A line for each experiment, the mean over its seeds, in a band of one standard deviation.

    Raises:
        ValueError: an experiment was never evaluated, or not with this metric.
    """
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, experiment in enumerate(experiments):
        curve = score_curve(experiment.runs, network, metric)
        if not curve.iterations:
            raise ValueError(
                f"{experiment.name} has no {metric} in metrics.json that all its seeds share; "
                "expected evaluations (TEST.EVAL_PERIOD)"
            )
        color = _COLORS[index % len(_COLORS)]
        style = "-" if index < len(_COLORS) else "--"
        label = f"{experiment.name} ({len(experiment.runs)})"
        mean, sd = np.array(curve.mean), np.array(curve.sd)
        axes.plot(curve.iterations, mean, style, color=color, label=label, marker="o", markersize=3)
        axes.fill_between(curve.iterations, mean - sd, mean + sd, color=color, alpha=0.15, lw=0)
    axes.set(xlabel="iteration", ylabel=f"{metric} of the {network} in percent")
    axes.legend(title="run (seeds)", fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    return figure
