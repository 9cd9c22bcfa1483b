"""The report as one file: text, tables, charts, pictures and the library that draws them."""

import json
import logging
import string
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from ...evaluation.tables import NETWORKS, scored_classes
from ...predict.loading import Networks, load_networks
from ...utils.atomic_write import write_atomically
from ..prototype_inspection import inspect
from ..scenes import refuse_other_classes
from . import tables
from .contents import RunContents, read_contents
from .curves import Chart, quality_charts, training_charts
from .gallery import gallery
from .samples import samples

logger = logging.getLogger(__name__)

_GENERATOR = '<meta name="generator" content="MPCL for Detectron2: report">'
_HEAD = 1000  # bytes, among which a page says so

# Told apart by the colour-blind, and dark enough on white (contrast of 3:1 or more).
COLORS = ("#0072b2", "#d55e00", "#007a5a", "#a8488a", "#8a6100", "#2f7fb8", "#000000", "#6b6b6b")

Runs = Sequence[RunContents]
Charts = dict[str, list[Chart]]
"""By their heading."""
Loaded = dict[int, Networks]
"""By the index of their run."""


def write_report(
    folders: Sequence[Path], output: Path, *, images: int = 6, patches: int = 3, width: int = 512
) -> list[str]:
    """Writes the page about the runs in ``folders``.

    Args:
        images: of the test set, predicted by each run; and half of those that prototypes are
            looked for in, a domain. 0: nothing that needs a checkpoint or data.
        patches: of each prototype.
        width: of pictures, in pixels, at most.
    Returns: what is missing in it, in sentences that the page shows, too.
    Raises: ValueError: a folder holds no run, a file is damaged, ``output`` is another file than a
    page, or plotly is not installed.
    """
    _refuse_other_files(output)
    library = plotly_js()
    runs = read_contents(folders)
    notes: list[str] = []
    loaded = _load(runs, notes) if images else {}
    charts = _charts(runs)
    data = _data(runs, charts, _samples(runs, loaded, images, width, notes))
    galleries = _galleries(runs, loaded, images, patches, notes)
    content = _fill(runs, charts, data, galleries, notes, library)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, content.encode())
    return notes


def _refuse_other_files(output: Path) -> None:
    """Raises ValueError where the page would take the place of anything but a page."""
    if output.suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"--output is {output}; expected a name that ends in .html")
    if output.exists() and (
        not output.is_file() or _GENERATOR not in output.read_bytes()[:_HEAD].decode("latin1")
    ):
        raise ValueError(f"--output {output} is there already and no report; choose another name")


def plotly_js() -> str:
    """The drawing library.

    Raises: ValueError: plotly is not installed.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ValueError(
            "the report draws with plotly, which is not installed: pip install -e '.[report]'"
        ) from error
    return str(get_plotlyjs())


def _load(runs: Runs, notes: list[str]) -> Loaded:
    """What cannot be loaded is noted and left out."""
    loaded: Loaded = {}
    for index, run in enumerate(runs):
        try:
            loaded[index] = load_networks(run.folder)
        except (ValueError, OSError) as error:
            notes.append(f"{run.name}: no pictures, its checkpoint cannot be loaded ({error}).")
    return loaded


def _data(runs: Runs, charts: Charts, samples: dict[str, Any] | None) -> dict[str, Any]:
    """What the page's script works on."""
    return {
        "runs": [{"name": r.name, "color": COLORS[i % len(COLORS)]} for i, r in enumerate(runs)],
        "charts": [chart for group in charts.values() for chart in group],
        "scores": _class_scores(runs),
        "confusions": [
            {"run": i, **asdict(confusion)}
            for i, r in enumerate(runs)
            for confusion in r.confusions
        ],
        "samples": samples,
    }


def _charts(runs: Runs) -> Charts:
    """By heading, the charts in which something changes: a curve of one point is none."""
    groups = {"Mean IoU": quality_charts(runs), **training_charts(runs)}
    return {
        heading: [c for c in charts if any(len(trace["x"]) > 1 for trace in c["traces"])]
        for heading, charts in groups.items()
    }


def _class_scores(runs: Runs) -> list[dict[str, Any]]:
    """A dict a data set: its classes, and their IoU for each run and network (None = absent)."""
    found = []
    for dataset in dict.fromkeys(name for run in runs for name in run.scores):
        classes = scored_classes([run.scores for run in runs], dataset)
        series = [
            {
                "run": index,
                "network": network,
                "values": [run.scores[dataset][network].get(f"IoU-{name}") for name in classes],
            }
            for index, run in enumerate(runs)
            for network in NETWORKS
            if run.scores.get(dataset, {}).get(network)
        ]
        found.append({"dataset": dataset, "classes": classes, "series": series})
    return found


def _samples(
    runs: Runs, loaded: Loaded, images: int, width: int, notes: list[str]
) -> dict[str, Any] | None:
    shown: dict[int, Networks] = {}
    first: Any = None
    for index, networks in loaded.items():
        sets = networks.cfg.DATASETS.TEST
        about = sets[0] if sets else None
        first = first or about
        if about is None or about != first:
            notes.append(
                f"{runs[index].name}: no predictions, it is tested on {about or 'no set'}."
            )
            continue
        try:
            refuse_other_classes(networks.cfg, about)
            shown[index] = networks
        except ValueError as error:
            notes.append(f"{runs[index].name}: no predictions, {error}.")
    if not shown:
        return None
    try:
        return samples(shown, images, width)
    except (ValueError, OSError) as error:
        notes.append(f"No predictions: {error}.")
        return None


def _galleries(runs: Runs, loaded: Loaded, images: int, patches: int, notes: list[str]) -> str:
    parts = []
    for index, networks in loaded.items():
        if networks.student.prototype_head is None:
            continue
        try:
            found = inspect(networks, number=2 * images, patches=patches)
        except (ValueError, OSError) as error:
            notes.append(f"{runs[index].name}: no prototypes shown ({error}).")
            continue
        parts.append(_fold(escape(runs[index].name), gallery(found, index)))
    return "".join(parts)


def _fill(
    runs: Runs,
    charts: Charts,
    data: dict[str, Any],
    galleries: str,
    notes: Sequence[str],
    library: str,
) -> str:
    swatches = [
        f'<span class="swatch" style="background:{r["color"]}"></span>' for r in data["runs"]
    ]
    curves = [_chart_group(heading, group) for heading, group in charts.items()]
    page = {
        "generator": _GENERATOR,
        "title": escape("Report: " + ", ".join(run.name for run in runs)),
        "written": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "notes": "".join(f"<li>{escape(note)}</li>" for note in notes),
        "summary": tables.summary(runs, swatches),
        "differing": tables.differing_settings(runs),
        "details": "".join(
            _fold(f"{swatch}{escape(run.name)}", tables.run_details(run))
            for run, swatch in zip(runs, swatches)
        ),
        "curves": "".join(curves) or "<p>No value was logged twice.</p>",
        "class_tables": "".join(
            tables.class_scores(runs, scores["dataset"], scores["classes"])
            for scores in data["scores"]
        ),
        "galleries": galleries or "<p>None of the runs shows prototypes here.</p>",
        "style": _asset("page.css"),
        "script": _asset("page.js"),
        "library": library,
        # Without any "<" nothing in it opens or ends an element, or a comment.
        "data": json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    return string.Template(_asset("page.html")).substitute(page)


def _chart_group(heading: str, charts: Sequence[Chart]) -> str:
    if not charts:
        return ""
    figures = "".join(
        f'<figure class="card"><figcaption><strong>{escape(chart["title"])}</strong> '
        f'<span class="help">{escape(chart["help"])}</span></figcaption>'
        f'<div class="chart" data-chart="{escape(chart["id"])}" role="img" '
        f'aria-label="{escape(_in_words(chart))}"></div></figure>'
        for chart in charts
    )
    body = f'<div class="cards">{figures}</div>'
    if heading == "More":
        return f"<details><summary>More curves ({len(charts)})</summary>{body}</details>"
    if heading == "Mean IoU":
        return f"<h3>{heading}</h3>{body}"
    return _fold(escape(heading), body)


def _fold(heading: str, body: str) -> str:
    """A part that the page folds up where it is narrow."""
    return f'<details class="fold" open><summary><h3>{heading}</h3></summary>{body}</details>'


def _in_words(chart: Chart) -> str:
    """What the chart shows, for those who do not see it: where each curve ends."""
    ends = ", ".join(f"{trace['name']} {trace['y'][-1]:.4g}" for trace in chart["traces"])
    return f"Curve of {chart['title']} over iterations. Last values: {ends}."


def _asset(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
