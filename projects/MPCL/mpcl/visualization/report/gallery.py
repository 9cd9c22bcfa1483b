"""Prototypes of a run as HTML: the image patches nearest to each, its usage and its state."""

from html import escape

from ..prototype_inspection import Inspection, Prototype
from ..prototype_pictures import strip
from .samples import data_url


def gallery(inspection: Inspection, run: int) -> str:
    """One row a class; rows carry ``data-class`` for the class filter.

    Args:
        run: index of the run.
    """
    by_class: dict[str, list[Prototype]] = {}
    for prototype in inspection.prototypes:
        by_class.setdefault(prototype.class_name, []).append(prototype)
    rows = "".join(_row(name, prototypes) for name, prototypes in by_class.items())
    waiting = ""
    if inspection.waiting:
        waiting = f"<p>Without prototypes: {escape(', '.join(inspection.waiting))}.</p>"
    return f'<div class="gallery" data-run="{run}">{rows}{waiting}</div>'


def _row(name: str, prototypes: list[Prototype]) -> str:
    figures = "".join(_figure(prototype) for prototype in prototypes)
    return (
        f'<section class="prototypes" data-class="{escape(name)}"><h4>{escape(name)}</h4>'
        f'<div class="strip">{figures}</div></section>'
    )


def _figure(prototype: Prototype) -> str:
    state = "dead" if prototype.dead else "" if any(prototype.pixels.values()) else "unused"
    share = f"{100 * prototype.share:.0f} %"
    length = len(prototype.nearest)
    words = f"{share} of the class's pixels"
    if prototype.other is not None:
        words += f"; nearest other class: {prototype.other_class} ({prototype.other:.2f} away)"
    alt = f"Prototype {prototype.number} of {prototype.class_name}: "
    alt += f"the {length} image patches nearest to it" if length else "no pixel is nearest to it"
    picture = f'<div class="none" role="img" aria-label="{escape(alt)}">no pixel</div>'
    if length:
        picture = f'<img src="{data_url(strip(prototype, length))}" alt="{escape(alt)}">'
    bar = f'<span class="bar"><span style="width:{100 * prototype.share:.1f}%"></span></span>'
    mark = f' <strong class="bad">{state}</strong>' if state else ""
    return (
        f'<figure title="{escape(words)}">{picture}{bar}'
        f"<figcaption>{prototype.number}: {share}{mark}</figcaption></figure>"
    )
