"""What lines a street: buildings with facades, walls, fences, hedges, and the yards behind them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from . import objects
from .canvas import Array, Canvas, Frame, Material, Point, choose, fade, hash_cells, scale, vary
from .looks import BUILDING, FENCE, VEGETATION, WALL, Palette

Rng = np.random.Generator
Item = tuple[float, Callable[[Canvas], None]]  # distance along the street, painter

HEIGHTS = {  # metres
    "building": (6.0, 17.0), "wall": (1.4, 3.0), "fence": (1.2, 2.2), "hedge": (1.0, 2.2),
    "open": (0.0, 0.0),
}  # fmt: skip
STYLES = ("rail", "picket", "plank", "plank")  # of fences


@dataclass(frozen=True)
class Section:
    """A stretch of a border: its kind (a key of HEIGHTS), start, end and height in metres."""

    kind: str
    start: float
    end: float
    height: float


@dataclass
class Side:
    """One side of the street (sign -1 left, 1 right); distances are from the centre line."""

    sign: int
    curb: float
    walk: tuple[float, float]
    border: float
    sections: list[Section] = field(default_factory=list)


class Facade:
    """Windows, doors and shops on a wall; called as a canvas shader."""

    def __init__(self, palette: Palette, rng: Rng, height: float) -> None:
        material: Material = choose(rng, palette.facade)
        tone = vary(rng, material.colour, 0.07)
        self.material = replace(material, colour=tone)
        self.curtain = material.joint >= 0.4  # a curtain wall is all glass
        self.trim = choose(rng, ((236, 234, 228), (70, 60, 54), scale(tone, 0.7)))
        self.glass = np.float32(vary(rng, choose(rng, palette.window), 0.1))
        self.plinth = np.float32(scale(tone, rng.uniform(0.6, 0.9)))
        self.door = np.float32(choose(rng, ((96, 62, 40), (50, 70, 60), (70, 74, 84))))
        self.storey = np.float32(height / max(2, round(height / rng.uniform(2.9, 3.5))))
        self.pitch = np.float32(rng.uniform(1.6, 3.0))
        self.share, self.tall = rng.uniform(0.4, 0.65), rng.uniform(0.45, 0.68)
        self.shop = bool(rng.random() < 0.4)
        self.lit, self.salt = rng.uniform(0.0, 0.2), int(rng.integers(4096))

    def __call__(self, u: Array, v: Array, du: Array, dv: Array) -> Array:
        """Colours (H, W, 3) at metres along the wall (1, W) and above the ground (H, W)."""
        colour = self.material.shade(u, v, du, dv)
        if self.curtain:
            return colour
        floor, column = np.floor(v / self.storey), np.floor(u / self.pitch)
        fu = np.abs(u / self.pitch - column - 0.5) * 2
        fv = np.abs(v / self.storey - floor - 0.52) * 2
        ground = floor < 1
        base = v < self.storey * 0.94
        colour[base] = 0.5 * (colour[base] + self.plinth)
        window, opening = self._windows(fu, fv, ground)
        seen = fade(self.pitch / 3, du) * fade(self.storey / 3, dv)
        self._blend(colour, opening, np.float32(self.trim), seen)
        self._blend(colour, window, self._panes(window, column, floor, fv), seen)
        door = ground & (column % 4 == self.salt % 4) & (fu < 0.5) & (v < 2.2)
        colour[door] = self.door
        return colour

    def _windows(self, fu: Array, fv: Array, ground: Array) -> tuple[Array, Array]:
        """Masks of the panes, and of the panes with their frames."""
        window = (fu < self.share) & (fu > 0.05) & (fv < self.tall)
        opening = (fu < self.share + 0.1) & (fv < self.tall + 0.08)
        if self.shop:
            window = np.where(ground, (fu < 0.88) & (fv < 0.74), window)
            opening = np.where(ground, (fu < 0.98) & (fv < 0.82), opening)
        return window, opening

    def _panes(self, window: Array, column: Array, floor: Array, fv: Array) -> Array:
        """Glass (n, 3): every window reflects something else, in some the light is on."""
        column = np.broadcast_to(column, window.shape)[window]
        cell = hash_cells(column, floor[window], self.salt)[:, None]
        glass = self.glass * (0.7 + 0.6 * cell)
        glass = np.where(cell > 1 - self.lit, np.float32([250, 214, 140]), glass)
        return glass * (1.12 - 0.3 * fv[window][:, None])

    @staticmethod
    def _blend(colour: Array, where: Array, paint: Array, seen: Array) -> None:
        """Mix paint into the colours of a mask, the less the farther away."""
        old = colour[where]
        colour[where] = old + (paint - old) * np.broadcast_to(seen, where.shape)[where][:, None]


def _along(x: float, section: Section, low: float, high: float) -> list[Point]:
    """A rectangle that stands along the street."""
    return [
        (x, low, section.start),
        (x, low, section.end),
        (x, high, section.end),
        (x, high, section.start),
    ]


def _across(x: float, back: float, section: Section) -> list[Point]:
    """The end of a section that faces the camera."""
    z, height = section.start, section.height
    return [(x, 0, z), (back, 0, z), (back, height, z), (x, height, z)]


def building(
    canvas: Canvas,
    x: float,
    outward: int,
    section: Section,
    deep: float,
    palette: Palette,
    seed: int,
) -> None:
    """A house ``deep`` metres deep: facade along the street, gable, flat or pitched roof."""
    rng = np.random.default_rng(seed)
    facade, roof = Facade(palette, rng, section.height), vary(rng, choose(rng, palette.roof))
    back, height, towards = x + outward * deep, section.height, (-outward, 0, 0)
    gable, eaves = _across(x, back, section), facade.trim
    if height < 13 and rng.random() < 0.55:
        ridge, top, eaves = (x + back) / 2, height + 0.32 * deep, roof
        slope = [(x, height, section.start), (x, height, section.end),
                 (ridge, top, section.end), (ridge, top, section.start)]  # fmt: skip
        normal = np.array([-outward * (top - height), deep / 2, 0.0])
        canvas.face(slope, roof, BUILDING, normal / np.linalg.norm(normal))
        gable.insert(3, (ridge, top, section.start))
    canvas.surface(gable, 2, facade, BUILDING, canvas.light((0, 0, -1)))
    canvas.surface(_along(x, section, 0, height), 0, facade, BUILDING, canvas.light(towards))
    cornice = _along(x - outward * 0.25, section, height - 0.35, height)
    canvas.polygon(cornice, scale(eaves, canvas.light(towards)), BUILDING)


def wall(
    canvas: Canvas, x: float, outward: int, section: Section, palette: Palette, seed: int
) -> None:
    """A free-standing wall with a coping."""
    material: Material = choose(np.random.default_rng(seed), palette.wall)
    light = canvas.light((-outward, 0, 0))
    end = _across(x, x + 0.35 * outward, section)
    canvas.surface(end, 2, material.shade, WALL, canvas.light((0, 0, -1)))
    canvas.surface(_along(x, section, 0, section.height), 0, material.shade, WALL, light)
    coping = _along(x - outward * 0.05, section, section.height - 0.15, section.height)
    canvas.polygon(coping, scale(material.colour, 0.8 * light), WALL)


def hedge(
    canvas: Canvas, x: float, outward: int, section: Section, palette: Palette, seed: int
) -> None:
    """A trimmed hedge."""
    rng = np.random.default_rng(seed)
    leaves = Material(vary(rng, choose(rng, palette.leaf)), 0.6, 0.05)
    light = 0.85 * canvas.ambient + 0.15
    canvas.surface(_across(x, x + outward, section), 2, leaves.shade, VEGETATION, light)
    canvas.surface(_along(x, section, 0, section.height), 0, leaves.shade, VEGETATION, light)


def fence(
    canvas: Canvas, x: float, outward: int, section: Section, palette: Palette, seed: int
) -> None:
    """Railing, pickets or planks; as in Cityscapes the gaps belong to the fence."""
    rng = np.random.default_rng(seed)
    start, end, height = max(section.start, 1.0), min(section.end, 60.0), section.height
    colour, style = vary(rng, choose(rng, palette.fence)), choose(rng, STYLES)
    if style == "plank":
        planks = Material(colour, 0.15, 0.03, "tiles", (0.2, 40.0), 0.4, 0.2)
        light = canvas.light((-outward, 0, 0))
        canvas.surface(_along(x, section, 0, height), 0, planks.shade, FENCE, light)
        return
    canvas.polygon(_along(x, section, 0, height), None, FENCE)
    step, radius, rails = (0.3, 0.022, (0.12, 0.95)) if style == "rail" else (0.2, 0.05, (0.3, 0.8))
    for z in np.arange(start, end, 2.0).tolist():  # in pieces: the far ones are thinner
        for up in rails:
            ends = (x, up * height, z), (x, up * height, min(z + 2, end))
            canvas.limb(*ends, 0.035, colour, None)
    for z in np.arange(start, end, step).tolist():
        canvas.limb((x, 0.05, z), (x, height, z), radius, colour, None)


BORDERS = {"wall": wall, "hedge": hedge, "fence": fence}


def border_items(sides: tuple[Side, Side], palette: Palette, end: float, rng: Rng) -> list[Item]:
    """What stands on and behind the borders, and the houses at the end of the street."""
    items: list[Item] = []
    for side in sides:
        for section in side.sections:
            place = {"x": side.sign * side.border, "outward": side.sign, "section": section}
            if section.kind == "building":
                place["deep"] = rng.uniform(8, 14)
                items.append(_item(building, section.start, palette, rng, **place))
                continue
            if section.kind in BORDERS:
                items.append(_item(BORDERS[section.kind], section.start, palette, rng, **place))
            items += _yard(side, section, palette, rng)
    for x in np.arange(-90, 90, 14.0).tolist():
        if abs(x) > 8 or rng.random() < 0.5:
            start = end + rng.uniform(0, 40)
            block = Section("building", start, start + 10, rng.uniform(5, 16))
            place = {"x": x, "outward": 1, "section": block, "deep": 13.0}
            items.append(_item(building, start, palette, rng, **place))
    return items


def _item(
    painter: Callable[..., None], distance: float, palette: Palette, rng: Rng, **place: object
) -> Item:
    seed = int(rng.integers(1 << 62))
    return distance, partial(painter, palette=palette, seed=seed, **place)


def _yard(side: Side, section: Section, palette: Palette, rng: Rng) -> list[Item]:
    """Trees, shrubs and at times a house behind a low border."""
    items: list[Item] = []
    for _ in range(int(rng.integers(1, 4))):
        x = side.sign * (side.border + rng.uniform(3, 9))
        frame = Frame(x, rng.uniform(section.start, section.end))
        painter = objects.bush if rng.random() < 0.35 else objects.tree
        own = np.random.default_rng(rng.integers(1 << 62))
        items.append((frame.z, partial(painter, frame=frame, palette=palette, rng=own)))
    if rng.random() < 0.55:
        house = replace(section, kind="building", height=rng.uniform(5, 9))
        x = side.sign * (side.border + rng.uniform(10, 16))
        place = {"x": x, "outward": side.sign, "section": house, "deep": 9.0}
        items.append(_item(building, house.start, palette, rng, **place))
    return items
