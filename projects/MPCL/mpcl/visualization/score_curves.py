"""Scores over iterations, of one run or several, each over its seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..evaluation.runs import Experiment, Run

# Okabe's and Ito's, told apart by the colour-blind, too; from the ninth run on, with dashes.
_COLORS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#000000", "#999999")


class Curve(NamedTuple):
    """Iterations (n,), and mean and sample standard deviation (n,) of the seeds there, in percent;
    the deviation of a single seed is 0."""

    iterations: NDArray[np.int64]
    mean: NDArray[np.float64]
    sd: NDArray[np.float64]


def score_curve(runs: Sequence[Run], network: str, metric: str) -> Curve:
    """Of the first test set, at the iterations at which all seeds were evaluated.

    Args:
        runs: that differ in their seed alone.
        network: ``teacher`` or ``student``; the student stands in where there is no teacher.
        metric: such as ``mIoU`` or ``IoU-road``.
    Raises: ValueError: a run has no such score.
    """
    by_seed = [_scores(run, network, metric) for run in runs]
    common = sorted(set.intersection(*map(set, by_seed)))
    values = np.array([[scores[i] for i in common] for scores in by_seed])
    sd = values.std(0, ddof=1) if len(runs) > 1 else np.zeros(len(common))
    return Curve(np.array(common, np.int64), values.mean(0), sd)


def _scores(run: Run, network: str, metric: str) -> dict[int, float]:
    """Scores by the number of iterations done; of repeated evaluations, as after a resume, the last
    counts."""
    tests, period = run.config["DATASETS"]["TEST"], run.config["TEST"]["EVAL_PERIOD"]
    found: dict[int, float] = {}
    for iteration, scores in run.evaluations if tests else ():
        networks = scores.get(tests[0], {})
        score = networks.get(network, networks.get("student", {})).get(metric)
        if score is not None:
            # A periodic evaluation is logged with the number of its iteration, from 0 on; the one
            # after training counts one further.
            periodic = bool(period) and (iteration + 1) % period == 0
            found[iteration + periodic] = score
    if not found:
        raise ValueError(
            f"{run.folder / 'metrics.json'} has no {metric}; expected a score of an evaluation "
            "on DATASETS.TEST, such as mIoU or IoU-<class>"
        )
    return found


def score_figure(
    experiments: Sequence[Experiment], network: str = "teacher", metric: str = "mIoU"
) -> Figure:
    """A line for each experiment, the mean over its finished seeds, or over all while none is, in a
    band of one standard deviation.

    Raises: ValueError: a run has no such score, or the first test sets of the runs differ.
    """
    tests = {tuple(run.config["DATASETS"]["TEST"][:1]) for e in experiments for run in e.runs}
    if len(tests) > 1:
        raise ValueError(
            f"the runs are evaluated on different data sets, {sorted(tests)}; expected a single one"
        )
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for index, experiment in enumerate(experiments):
        runs = experiment.finished or experiment.runs  # one in progress would cut the others short
        curve = score_curve(runs, network, metric)
        color = _COLORS[index % len(_COLORS)]
        style = "-" if index < len(_COLORS) else "--"
        adapts = all(run.config["SELF_TRAINING"]["ENABLED"] for run in runs)
        label = f"{experiment.name} ({len(runs)}{'' if adapts else ', student'})"
        axes.plot(
            curve.iterations, curve.mean, style, color=color, label=label, marker="o", markersize=3
        )
        low, high = curve.mean - curve.sd, curve.mean + curve.sd
        axes.fill_between(curve.iterations, low, high, color=color, alpha=0.15, lw=0)
    axes.set(xlabel="iteration", ylabel=f"{metric} of the {network} in percent")
    axes.set_title(", ".join(*tests), fontsize=10)
    axes.legend(title="run (seeds)", fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    return figure
