"""HTML tables of the report. Everything that comes from outside is escaped here."""

import json
import shlex
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from ...evaluation.evaluator import CLASS_SCORES
from ...evaluation.tables import NETWORKS
from .contents import RunContents, settings_that_differ

_LONGEST = 1000  # characters of a setting


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], caption: str, kind: str = "settings"
) -> str:
    """An HTML table, which scrolls sideways where it is too wide. Cells are HTML already; the first
    of a row is its header."""
    head = "".join(f'<th scope="col">{cell}</th>' for cell in headers)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table class="{kind}">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def summary(runs: Sequence[RunContents], swatches: Sequence[str]) -> str:
    """One line a run: how far it is, what it scored and what it cost."""
    datasets = list(dict.fromkeys(name for run in runs for name in run.scores))
    columns = [(dataset, network) for dataset in datasets for network in NETWORKS]
    several = len(datasets) > 1
    headers = ["run"]
    headers += [
        f"{network}{f' on {escape(dataset)}' if several else ''}, mIoU %"
        for dataset, network in columns
    ]
    headers += ["seed", "iterations", "s / iteration", "training", "evaluation", "peak memory"]
    scores = {column: [_score(run, *column) for run in runs] for column in columns}
    best = {c: max((s for s in own if s is not None), default=None) for c, own in scores.items()}
    rows = []
    for run, swatch in zip(runs, swatches):
        cells = [f"{swatch}{escape(run.name)}"]
        for column in columns:
            value = _score(run, *column)
            text = "–" if value is None else f"{value:.2f}"
            top = value is not None and value == best[column] and len(runs) > 1
            cells.append(f"<strong>{text}</strong>" if top else text)
        cells += [escape(str(run.config["SEED"])), _progress(run)]
        pace, memory = run.seconds_per_iteration, run.peak_memory
        cells += ["–" if pace is None else f"{pace:.3g}", duration(run.training_seconds)]
        # Teacher and student share the pass over a set.
        seconds = sum({each.dataset: each.seconds for each in run.confusions}.values())
        cells.append(duration(seconds) if seconds else "–")
        cells.append("–" if memory is None else f"{memory[0]:,.0f} MiB ({memory[1]})")
        rows.append(cells)
    return table(headers, rows, "Runs at a glance", kind="summary")


def _score(run: RunContents, dataset: str, network: str) -> float | None:
    return run.scores.get(dataset, {}).get(network, {}).get(run.headline)


def _progress(run: RunContents) -> str:
    done = min(run.iterations, run.max_iterations)
    return f"{done:,}" + f" of {run.max_iterations:,}" * (done < run.max_iterations)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds, as far as they are needed."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {whole % 60:02d} s" if minutes else f"{whole} s"


def value(setting: Any) -> str:
    """A setting as it would be typed."""
    if setting is None:
        return "<em>absent</em>"
    text = setting if isinstance(setting, str) else json.dumps(setting, default=str)
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + " ..."
    return f"<code>{escape(text) or '&quot;&quot;'}</code>"


def differing_settings(runs: Sequence[RunContents]) -> str:
    """A table of the settings that differ between the runs, or a sentence that none does."""
    if len(runs) < 2:
        return ""
    rows = [
        [f"<code>{escape(key)}</code>", *map(value, values)]
        for key, values in settings_that_differ(runs).items()
    ]
    if not rows:
        return "<p>The runs have the same settings, but for the seed and the folder.</p>"
    headers = ["key", *(escape(run.name) for run in runs)]
    return table(headers, rows, "Settings in which the runs differ")


def run_details(run: RunContents) -> str:
    """Command, code, versions, machine and settings of one run."""
    parts = [_session(session, number) for number, session in enumerate(run.sessions, 1)]
    if not run.sessions:
        parts = ["<p>The run was trained by a version that did not write down its command.</p>"]
    changed = run.sessions[0].get("changed") if run.sessions else None
    if changed is not None:
        file = run.sessions[0].get("config_file") or "the defaults"
        parts.append(_settings(changed, f"Changed from {file}", "config file"))
    parts.append(_settings(run.not_default(), "Different from the package's defaults", "default"))
    return "".join(parts)


def _settings(changed: dict[str, Any], caption: str, base: str) -> str:
    if not changed:
        return f"<p>{escape(caption)}: nothing.</p>"
    rows = [
        [f"<code>{escape(key)}</code>", value(before), value(after)]
        for key, (before, after) in sorted(changed.items())
    ]
    body = table(["key", base, "this run"], rows, caption)
    return f"<details><summary>{escape(caption)} ({len(rows)})</summary>{body}</details>"


def _session(session: dict[str, Any], number: int) -> str:
    git = session.get("git")
    state = "no git repository"
    if git:
        dirty = git["changed_files"]
        state = f"{str(git['commit'])[:12]} on {git['branch']}"
        state += f", {dirty} files changed" if dirty else ", nothing changed"
    versions = ", ".join(f"{name} {number}" for name, number in session["versions"].items())
    facts = {
        "started": session["started"],
        "code": state,
        "machine": f"{session['device']}; processes: {session['processes']}",
        "versions": versions,
    }
    lines = "".join(f"<dt>{key}</dt><dd>{escape(str(text))}</dd>" for key, text in facts.items())
    title = "<h4>Started</h4>" if number == 1 else f"<h4>Resumed ({number - 1})</h4>"
    command = escape(shlex.join(session["command"]))
    return f"{title}<pre><code>{command}</code></pre><dl>{lines}</dl>"


def class_scores(runs: Sequence[RunContents], dataset: str, classes: Sequence[str]) -> str:
    """Tables of IoU, for those who do not see the bars, and of the other scores of each class."""
    networks = [each for run in runs for each in run.scores.get(dataset, {}).values()]
    known = {metric.partition("-")[0] for network in networks for metric in network}
    kinds = ["IoU", *(kind for kind in CLASS_SCORES if kind in known)]  # earlier runs lack them
    return "".join(_class_table(runs, dataset, classes, kind) for kind in kinds)


def _class_table(
    runs: Sequence[RunContents], dataset: str, classes: Sequence[str], kind: str
) -> str:
    columns = [(run, n) for run in runs for n in NETWORKS if run.scores.get(dataset, {}).get(n)]
    rows = []
    for name in classes:
        found = [run.scores[dataset][network].get(f"{kind}-{name}") for run, network in columns]
        rows.append([escape(name), *("–" if v is None else f"{v:.1f}" for v in found)])
    headers = ["class", *(f"{escape(run.name)}, {network}" for run, network in columns)]
    return table(headers, rows, f"{kind} of each class on {dataset}, %", kind="summary")
