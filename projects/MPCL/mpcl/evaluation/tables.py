"""Tables of scores: one evaluation at a glance, and experiments over seeds beside each other.

Scores of different splits (validation, test) never share a column: a table holds one split.
"""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from .notes import notes
from .runs import NETWORKS, Experiment, Run, Scores, scored_classes

IN_USE = "in use"
"""The network that a run is used with: its teacher where it has one, else its student."""

_COLUMNS = (IN_USE, *NETWORKS)


def summary(scores: Scores, metrics: Sequence[str]) -> str:
    """Data sets and networks in rows, metrics in columns; one table for each split."""
    splits: dict[str, list[list]] = {}
    for dataset, networks in scores.items():
        rows = splits.setdefault(dataset.rsplit("_", 1)[-1], [])
        for network in NETWORKS:
            if network in networks:
                rows.append([dataset, network, *(networks[network].get(m) for m in metrics)])
    return "\n\n".join(
        tabulate(
            rows,
            headers=[f"set ({split})", "network", *metrics],
            floatfmt=".2f",
            missingval="absent",
        )
        for split, rows in splits.items()
    )


def mean_and_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1); None where n is too small for it."""
    mean = float(np.mean(values)) if len(values) else None
    return mean, float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class Row:
    """One metric of one network of one experiment, over its finished seeds.

    ``difference`` and its standard deviation are over ``pairs``, the seeds that the reference, the
    first experiment, has as well; None for the reference itself.
    """

    run: str
    dataset: str
    network: str
    metric: str
    n: int
    mean: float | None
    sd: float | None
    reference: str | None
    pairs: int | None
    difference: float | None
    difference_sd: float | None


def scores_over_seeds(
    experiment: Experiment, dataset: str, network: str, metric: str
) -> dict[int, float]:
    """Seed -> percent, of the finished runs that have such a score.

    With TEST.CLASS_SUBSETS, a class that is in none of them is absent from the benchmark.
    """
    found = {}
    for run in experiment.finished:
        subsets = run.config["TEST"].get("CLASS_SUBSETS") or ()
        benchmark = {f"IoU-{c}" for _, classes in subsets for c in classes}
        absent = benchmark and metric.startswith("IoU-") and metric not in benchmark
        name = network_in_use(run, dataset) if network == IN_USE else network
        value = run.scores.get(dataset, {}).get(name, {}).get(metric)
        if value is not None and not absent:
            found[run.seed] = value
    return found


def network_in_use(run: Run, dataset: str) -> str:
    """The network that predicts, of a finished run; prototypes are the student's."""
    by_prototypes = run.config["TEST"].get("OUTPUT") == "prototypes"
    by_teacher = "teacher" in run.scores.get(dataset, {}) and not by_prototypes
    return "teacher" if by_teacher else "student"


def networks_to_compare(experiments: Sequence[Experiment]) -> list[str]:
    """The one in use first, then the student. Where all runs use their teacher, or all their
    student, its own name."""
    used = {network_in_use(run, name) for run in _finished(experiments) for name in run.scores}
    return _unique([IN_USE if len(used) > 1 else max(used, default="student"), "student"])


def compare(
    experiments: Sequence[Experiment],
    metrics: Sequence[str] = (),
    networks: Sequence[str] = (),
    per_class: bool = False,
) -> list[Row]:
    """Statistics of each experiment, and paired differences to the first.

    Args:
        metrics: default: the means that the runs report, headline first.
        networks: ``"teacher"``, ``"student"`` or :data:`IN_USE`; default:
            :func:`networks_to_compare`.
        per_class: the IoU of each class as well.
    Raises: ValueError: no run has one of the metrics.
    """
    rows = []
    known = _unique(m for r in _finished(experiments) for n in _networks_of(r) for m in n)
    if known and (unknown := [metric for metric in metrics if metric not in known]):
        raise ValueError(f"no run has the metric {', '.join(unknown)}; known: {', '.join(known)}")
    networks = networks or networks_to_compare(experiments)
    for dataset in _datasets(experiments):
        runs = _finished(experiments)
        chosen = list(metrics) or _unique(metric for run in runs for metric in run.metrics)
        if per_class:
            classes = scored_classes(runs, dataset)
            chosen += [f"IoU-{name}" for name in classes]
        rows += [
            _row(experiment, experiments[0], dataset, network, metric)
            for experiment in experiments
            for network in networks
            for metric in chosen
        ]
    return rows


def _row(
    experiment: Experiment, reference: Experiment, dataset: str, network: str, metric: str
) -> Row:
    own = scores_over_seeds(experiment, dataset, network, metric)
    key = (experiment.name, dataset, network, metric)
    statistics = (len(own), *mean_and_sd(list(own.values())))
    if experiment is reference:
        return Row(*key, *statistics, None, None, None, None)
    others = scores_over_seeds(reference, dataset, network, metric)
    paired = [own[seed] - others[seed] for seed in own if seed in others]
    return Row(*key, *statistics, reference.name, len(paired), *mean_and_sd(paired))


def _finished(experiments: Sequence[Experiment]) -> list[Run]:
    return [run for experiment in experiments for run in experiment.finished]


def _networks_of(run: Run) -> list[dict[str, float]]:
    """The scores of each network on each set."""
    return [scores for networks in (run.scores or {}).values() for scores in networks.values()]


def _datasets(experiments: Sequence[Experiment]) -> list[str]:
    return _unique(name for run in _finished(experiments) for name in run.scores)


def _unique(names: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(names))


def markdown(rows: Sequence[Row]) -> str:
    """For each data set: the means, the paired differences, and the classes if there are any."""
    sections = []
    for dataset in _unique(row.dataset for row in rows):
        of_set = [row for row in rows if row.dataset == dataset]
        means = [row for row in of_set if not row.metric.startswith("IoU-")]
        parts = [f"## {dataset}, percent"]
        if means:
            parts.append(_by_run(means, "n", lambda row: (row.n, _cell(row.mean, row.sd))))
        paired = [row for row in means if row.reference is not None]
        if any(row.pairs for row in paired):
            parts.append(f"Minus {paired[0].reference}, seed by seed:")
            parts.append(
                _by_run(
                    paired,
                    "pairs",
                    lambda row: (row.pairs, _cell(row.difference, row.difference_sd, "+")),
                )
            )
        classes = [row for row in of_set if row.metric.startswith("IoU-")]
        if classes:
            parts.append(_by_class(classes))
        sections.append("\n\n".join(parts))
    return "\n\n".join(sections)


def _by_run(rows: Sequence[Row], count: str, read: Callable[[Row], tuple[int | None, str]]) -> str:
    """Runs in rows; network and metric in columns. ``read(row)`` gives the count and the cell."""
    filled = _unique((row.network, row.metric) for row in rows if read(row)[0])
    columns = sorted(filled, key=lambda column: _COLUMNS.index(column[0]))
    table = []
    for name in _unique(row.run for row in rows):
        own = {(row.network, row.metric): read(row) for row in rows if row.run == name}
        cells = [own[column][1] for column in columns]
        table.append([name, max((number for number, _ in own.values()), default=0), *cells])
    return _pipe(table, ["run", count, *(" ".join(column) for column in columns)])


def _by_class(rows: Sequence[Row]) -> str:
    """Classes in rows; run and network in columns."""
    columns = _unique((row.run, row.network) for row in rows if row.n)
    cells = {(row.metric, row.run, row.network): row for row in rows}
    table = []
    for metric in _unique(row.metric for row in rows):
        line = [cells[(metric, *column)] for column in columns]
        table.append(
            [
                metric.removeprefix("IoU-"),
                *(_cell(row.mean, row.sd) if row.n else "absent" for row in line),
            ]
        )
    return _pipe(table, ["class IoU", *(", ".join(column) for column in columns)])


def _pipe(table: list[list], headers: list[str]) -> str:
    return tabulate(table, headers=headers, tablefmt="pipe", disable_numparse=True)


def _cell(mean: float | None, sd: float | None, sign: str = "") -> str:
    if mean is None:
        return "-"
    return f"{mean:{sign}.2f}" + ("" if sd is None else f" ± {sd:.2f}")


def write_csv(rows: Sequence[Row], file: Path) -> None:
    """One line a row, all digits; empty where there is no value."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def report(experiments: Sequence[Experiment], rows: Sequence[Row]) -> str:
    """The tables, with everything that has to be said about them below."""
    remarks = "\n".join(f"- {note}" for note in notes(experiments))
    legend = []
    if any(row.sd is not None for row in rows):
        legend.append("Mean ± sample standard deviation over seeds; n finished seeds.")
    elif rows:
        legend.append("One seed each: how far seeds spread is not known (tools/run_seeds.py).")
    if any(row.network == IN_USE for row in rows):
        legend.append("In use: the teacher where a run has one, else the student.")
    return "\n\n".join(part for part in (markdown(rows), " ".join(legend), remarks) if part)
