"""The report as one file: text, tables, charts, pictures and the library that draws them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2

from ...evaluation.runs import scored_classes
from ...predict.loading import Networks, load_networks, refuse_other_classes
from ...utils.atomic_write import write_atomically
from ..prototype_inspection import Inspection, Prototype, inspect
from ..prototype_pictures import strip
from . import tables
from .contents import RunContents, read_contents
from .curves import Chart, quality_charts, training_charts
from .samples import data_url, samples

_GENERATOR = '<meta name="generator" content="MPCL for Detectron2: report">'
_HEAD = 1000  # bytes, among which a page says so

# Told apart by the colour-blind, and dark enough on white (contrast of 3:1 or more).
COLORS = ("#0072b2", "#d55e00", "#007a5a", "#a8488a", "#8a6100", "#2f7fb8", "#000000", "#6b6b6b")

Runs = Sequence[RunContents]
Loaded = dict[int, Networks]
"""By the index of their run."""

_FOLDER = Path(__file__).parent
# Text that a value puts into the page is escaped; a value that is not there is an error.
_PAGES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(_FOLDER),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


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
    shown = _samples(runs, loaded, images, width, notes)
    inspections = _inspections(runs, loaded, images, patches, notes)
    content = render(runs, shown, inspections, notes, library)
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


@contextmanager
def _noted(notes: list[str], words: str) -> Iterator[None]:
    """What fails is left out of the page, which says so."""
    try:
        yield
    except (ValueError, OSError) as error:
        notes.append(f"{words}{error}.")


def _load(runs: Runs, notes: list[str]) -> Loaded:
    loaded: Loaded = {}
    for index, run in enumerate(runs):
        with _noted(notes, f"{run.name}: no pictures, its checkpoint cannot be loaded: "):
            loaded[index] = load_networks(run.folder)
    return loaded


def _charts(runs: Runs) -> dict[str, list[Chart]]:
    """By heading, the charts in which something changes: a curve of one point is none."""
    groups = {"Mean IoU": quality_charts(runs), **training_charts(runs)}
    return {
        heading: [c for c in charts if any(len(trace["x"]) > 1 for trace in c["traces"])]
        for heading, charts in groups.items()
    }


def _scores(runs: Runs) -> list[dict[str, Any]]:
    """A dict a data set: its classes, and their IoU for each run and network."""
    found = []
    for dataset in dict.fromkeys(name for run in runs for name in run.latest):
        classes = scored_classes(runs, dataset)
        series = tables.class_scores(runs, dataset, classes)
        found.append({"dataset": dataset, "classes": classes, "series": series})
    return found


def _samples(
    runs: Runs, loaded: Loaded, images: int, width: int, notes: list[str]
) -> dict[str, Any] | None:
    shown: dict[int, Networks] = {}
    first = None
    for index, networks in loaded.items():
        dataset = next(iter(networks.cfg.DATASETS.TEST), None)
        first = first or dataset
        with _noted(notes, f"{runs[index].name}: no predictions, "):
            if dataset is None or dataset != first:
                raise ValueError(f"it is tested on {dataset or 'no set'}")
            refuse_other_classes(networks, dataset)
            shown[index] = networks
    with _noted(notes, "No predictions: "):
        return samples(shown, images, width) if shown else None
    return None


def _inspections(
    runs: Runs, loaded: Loaded, images: int, patches: int, notes: list[str]
) -> dict[int, Inspection]:
    found = {}
    for index, networks in loaded.items():
        if networks.student.prototype_head is not None:
            with _noted(notes, f"{runs[index].name}: no prototypes shown: "):
                found[index] = inspect(networks, number=2 * images, patches=patches)
    return found


def render(
    runs: Runs,
    samples: dict[str, Any] | None = None,
    inspections: dict[int, Inspection] | None = None,
    notes: Sequence[str] = (),
    library: str = "",
) -> str:
    """The page's HTML.

    Args:
        samples: see :func:`.samples.samples`.
        inspections: of prototypes, by the index of their run.
        library: what draws the charts.
    """
    charts, scores = _charts(runs), _scores(runs)
    colors = [COLORS[i % len(COLORS)] for i in range(len(runs))]
    data = {  # what the page's script works on
        "runs": [{"name": run.name, "color": color} for run, color in zip(runs, colors)],
        "charts": [chart for group in charts.values() for chart in group],
        "scores": scores,
        "confusions": [
            {"run": i, **asdict(c)} for i, run in enumerate(runs) for c in run.confusions
        ],
        "samples": samples,
    }
    return _PAGES.get_template("page.html").render(
        generator=_GENERATOR,
        title="Report: " + ", ".join(run.name for run in runs),
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        notes=notes,
        runs=runs,
        colors=colors,
        tables=tables,
        charts=charts,
        scores=scores,
        inspections=inspections or {},
        picture=_picture,
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        script=(_FOLDER / "page.js").read_text(encoding="utf-8"),
        library=library,
        # Without any "<" nothing in it opens or ends an element, or a comment.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    )


def _picture(prototype: Prototype) -> str:
    """The patches of a prototype as a URL."""
    return data_url(strip(prototype, len(prototype.nearest)))
