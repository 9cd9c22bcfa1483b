"""The tables of the report. Cells are text, which the page escapes, or markup made here."""

import json
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from ...evaluation.evaluator import CLASS_SCORES
from ...evaluation.runs import NETWORKS, differences, setting
from .contents import RunContents

_LONGEST = 1000  # characters of a setting


class Table(NamedTuple):
    """The first cell of a row is its header."""

    caption: str
    headers: list[str]
    rows: list[list[str]]
    kind: str = "settings"


def summary(runs: Sequence[RunContents]) -> Table:
    """One line a run: how far it is, what it scored and what it cost."""
    datasets = list(dict.fromkeys(name for run in runs for name in run.latest))
    columns = [
        (dataset, network, metric)  # the headlines of all runs, each in a column of its own
        for dataset in datasets
        for metric in dict.fromkeys(run.metrics[0] for run in runs)
        for network in NETWORKS
    ]
    headers = ["run"]
    for dataset, network, metric in columns:
        headers.append(f"{network}{f' on {dataset}' if len(datasets) > 1 else ''}, {metric} %")
    headers += ["seed", "iterations", "s / iteration", "training", "evaluation", "peak memory"]
    scores = [[run.score(*column) for column in columns] for run in runs]
    best = [max((s for s in each if s is not None), default=None) for each in zip(*scores)]
    rows = []
    for run, own in zip(runs, scores):
        cells = [run.name]
        for value, highest in zip(own, best):
            cell = Markup("<strong>{}</strong>" if value == highest and runs[1:] else "{}")
            cells.append("–" if value is None else cell.format(f"{value:.2f}"))
        cells += [str(run.config["SEED"]), _progress(run)]
        pace, memory = run.seconds_per_iteration, run.peak_memory
        cells += ["–" if pace is None else f"{pace:.3g}", duration(run.training_seconds)]
        # Teacher and student share the pass over a set.
        seconds = sum({each.dataset: each.seconds for each in run.confusions}.values())
        cells.append(duration(seconds) if seconds else "–")
        cells.append("–" if memory is None else f"{memory[0]:,.0f} MiB ({memory[1]})")
        rows.append(cells)
    return Table("Runs at a glance", headers, rows, "summary")


def _progress(run: RunContents) -> str:
    done = min(run.iterations, run.max_iter)
    return f"{done:,} of {run.max_iter:,}" if done < run.max_iter else f"{done:,}"


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as far as they are needed."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def differing_settings(runs: Sequence[RunContents]) -> Table:
    """The settings that differ between the runs."""
    keys: dict[str, None] = {}
    for run in runs[1:]:
        keys |= dict.fromkeys(differences(runs[0].config, run.config))
    rows = [[_code(key), *(_typed(setting(run.config, key)) for run in runs)] for key in keys]
    return Table("Settings in which the runs differ", ["key", *(run.name for run in runs)], rows)


def changed_settings(run: RunContents) -> list[Table]:
    """How the settings of a run differ from its config file, if that is known, and from the
    package's defaults."""
    first = run.sessions[0] if run.sessions else {}
    tables = []
    if (changed := first.get("changed")) is not None:
        file = first.get("config_file") or "the defaults"
        tables.append(_changes(changed, f"Changed from {file}", "config file"))
    caption = "Different from the package's defaults"
    return [*tables, _changes(run.not_default(), caption, "default")]


def _changes(changed: dict[str, Any], caption: str, base: str) -> Table:
    rows = [[_code(key), *map(_typed, pair)] for key, pair in sorted(changed.items())]
    return Table(caption, ["key", base, "this run"], rows)


def _code(text: str) -> Markup:
    return Markup("<code>{}</code>").format(text)


def _typed(value: Any) -> Markup:
    """A setting as it would be typed."""
    if value is None:
        return Markup("<em>absent</em>")
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return _code(f"{text[:_LONGEST]} ..." if len(text) > _LONGEST else text or '""')


def session_facts(session: dict[str, Any]) -> dict[str, str]:
    """What is known of a process that trained the run."""
    git = session.get("git")
    state = "no git repository"
    if git:
        changed = f"{git['changed_files']} files" if git["changed_files"] else "nothing"
        state = f"{str(git['commit'])[:12]} on {git['branch']}, {changed} changed"
    return {
        "command": shlex.join(session["command"]),
        "started": session["started"],
        "code": state,
        "machine": f"{session['device']}; processes: {session['processes']}",
        "versions": ", ".join(f"{name} {number}" for name, number in session["versions"].items()),
    }


def class_scores(
    runs: Sequence[RunContents], dataset: str, classes: Sequence[str], kind: str = "IoU"
) -> list[dict[str, Any]]:
    """Percent of each class (None = absent), a dict for each run and network that has any."""
    return [
        {
            "run": index,
            "network": network,
            "values": [run.score(dataset, network, f"{kind}-{name}") for name in classes],
        }
        for index, run in enumerate(runs)
        for network in NETWORKS
        if network in run.latest.get(dataset, {})
    ]


def class_tables(runs: Sequence[RunContents], dataset: str, classes: Sequence[str]) -> list[Table]:
    """IoU, for those who do not see the bars, and the other scores of each class."""
    tables = []
    for kind in ("IoU", *CLASS_SCORES):
        series = class_scores(runs, dataset, classes, kind)
        if kind != "IoU" and not any(v is not None for each in series for v in each["values"]):
            continue  # earlier runs lack them
        headers = ["class", *(f"{runs[each['run']].name}, {each['network']}" for each in series)]
        by_class = zip(classes, *(each["values"] for each in series))
        rows = [[n, *("–" if v is None else f"{v:.1f}" for v in values)] for n, *values in by_class]
        tables.append(Table(f"{kind} of each class on {dataset}, %", headers, rows, "summary"))
    return tables
