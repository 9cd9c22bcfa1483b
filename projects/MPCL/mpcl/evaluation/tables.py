"""Tables of scores: one evaluation at a glance, and experiments over seeds beside each other.

Scores of different splits (validation, test) never share a column: a table holds one split.
"""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from tabulate import tabulate

from .run_record import read_confusions, read_sessions
from .runs import Experiment, Run, Scores, differences

NETWORKS = ("teacher", "student")
IN_USE = "in use"
"""The network that a run is used with: its teacher where it has one, else its student."""

_COLUMNS = (IN_USE, *NETWORKS)
_FAR_APART = 3.0  # points between teacher and student from which on a reader should know of it
# Settings that must agree for scores to be comparable; others are what is compared.
_SHARED = (
    *("DATASETS.TEST", "TEST.CLASS_SUBSETS", "TEST.AUG.ENABLED"),
    *("SOLVER.MAX_ITER", "SOLVER.IMS_PER_BATCH"),
)


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


def scored_classes(runs: Sequence[Run], dataset: str) -> list[str]:
    """The classes that runs were last scored on, in the order of the data set where it is
    registered, else in that of the runs."""
    networks = [network for run in runs for network in run.latest.get(dataset, {}).values()]
    metrics = _unique(metric for network in networks for metric in network)
    seen = [metric.removeprefix("IoU-") for metric in metrics if metric.startswith("IoU-")]
    if dataset in MetadataCatalog:
        known = MetadataCatalog.get(dataset).get("stuff_classes", ())
    else:
        known = [name for run in runs for name in run.classes]
    return _unique([*(name for name in known if name in seen), *seen])


def _unique(names: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(names))


def notes(experiments: Sequence[Experiment]) -> list[str]:
    """Sentences on what is left out, and on what does not stand for the same thing."""
    found = [note for experiment in experiments for note in _notes_on_seeds(experiment)]
    first, *others = [experiment for experiment in experiments if experiment.finished] or [None]
    for experiment in others:
        found += _notes_on_pair(first, experiment)
    return _unique(found)


def _notes_on_seeds(experiment: Experiment) -> Iterator[str]:
    for run in experiment.runs:
        if run.scores is None and not run.config["DATASETS"]["TEST"]:
            yield (
                f"{experiment.name}, seed {run.seed} ({run.folder}) has no scores, DATASETS.TEST "
                "being empty, and is left out."
            )
        elif run.scores is None:
            yield (
                f"{experiment.name}, seed {run.seed} ({run.folder}) is unfinished, iteration "
                f"{run.iteration} of {run.max_iter}, and left out."
            )
    for run in experiment.finished:
        yield from _notes_on_networks(experiment, run)
        for session in read_sessions(run.folder):
            for key, (then, now) in (session.get("resumed_with") or {}).items():
                yield (
                    f"{experiment.name}, seed {run.seed} went on with another {key}: {then} before "
                    f"{session['started']}, {now} after it."
                )
        first = experiment.finished[0]
        for key, (one, other) in differences(first.config, run.config).items():
            yield (
                f"{experiment.name}: seeds {first.seed} and {run.seed} differ in {key}, "
                f"{one} and {other}; their mean mixes both."
            )


def _notes_on_networks(experiment: Experiment, run: Run) -> Iterator[str]:
    """Where the two networks of a run are far from each other, and what that comes from."""
    headline = run.metrics[0]
    for dataset, networks in run.scores.items():
        teacher, student = (networks.get(name, {}).get(headline) for name in NETWORKS)
        if teacher is None or student is None or abs(teacher - student) < _FAR_APART:
            continue
        statistics = run.config.get("SELF_TRAINING", {}).get("TEACHER_STATISTICS")
        if teacher < student:
            reason = "The teacher averages the student's weights, and lags behind in a short run"
        elif statistics == "target":
            reason = (
                "The teacher's batch norm knows the target, the student's mixes both domains "
                "(SELF_TRAINING.TEACHER_STATISTICS target)"
            )
        else:
            reason = "The teacher averages the student's weights, which swing from step to step"
        yield (
            f"{experiment.name}, seed {run.seed}: teacher {teacher:.2f} and student {student:.2f} "
            f"{headline} on {dataset} are far apart. {reason}."
        )


def _notes_on_pair(first: Experiment, other: Experiment) -> Iterator[str]:
    """What keeps two experiments from being comparable."""
    subject = f"NOT COMPARABLE as it stands: {first.name} and {other.name}"
    one, two = first.finished[0], other.finished[0]
    if not {run.seed for run in first.finished} & {run.seed for run in other.finished}:
        yield f"{first.name} and {other.name} have no seed in common: nothing can be paired."
    changed = differences(one.config, two.config)
    for key in _SHARED:
        if key in changed:
            yield f"{subject} differ in {key}, {changed[key][0]} and {changed[key][1]}."
    for dataset in one.scores:
        classes = [set(scored_classes([run], dataset)) for run in (one, two)]
        if dataset in two.scores and classes[0] != classes[1]:
            yield f"{subject} were scored on other classes of {dataset}."
    truths = [_labelled_pixels(run) for run in (one, two)]
    for dataset in truths[0].keys() & truths[1].keys():
        if truths[0][dataset] != truths[1][dataset]:
            yield f"{subject} were scored on other labels, or other images, of {dataset}."


def _labelled_pixels(run: Run) -> dict[str, list[int]]:
    """Of each set that the run was scored on last, the pixels of each class."""
    found = read_confusions(run.folder)
    return {each.dataset: [sum(row) for row in each.matrix] for each in found}


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
