"""Lays out a street and paints it: ground, buildings, walls, fences, then everything in between from far to near.

Image i of a domain depends on (seed, domain, i, size) alone. Each image features one rare class in turn, so that a short run of
images holds all 19 classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import cv2
import numpy as np
import streets_objects as things
from streets_canvas import (
    RGB,
    Array,
    Camera,
    Canvas,
    Frame,
    Material,
    Point,
    fade,
    hash_cells,
    noise,
    scale,
    vary,
)
from streets_looks import LOOKS, Look, Palette, Weather, expose, paint_sky, sense
from streets_objects import (
    BUILDING, FENCE, IGNORE, ROAD, SIDEWALK, SKY, TERRAIN, VEGETATION, WALL, Rng, choose,
)  # fmt: skip

SUPERSAMPLING = 2
FEATURES = ("tram", "bus", "truck", "motorcycle", "motorcyclist", "cyclist", "wall", "fence")
LANE = 3.2  # metres
FAR = 120.0  # metres; the end of the street
Item = tuple[float, Callable[[Canvas], None]]  # depth, painter


@dataclass
class Section:
    """A stretch of what borders the street."""

    kind: str  # building, wall, fence, hedge, open
    start: float
    end: float
    height: float


@dataclass
class Side:
    """One side of the street; distances from the road's centre line, outwards."""

    sign: int
    curb: float
    walk: tuple[float, float]
    border: float
    sections: list[Section] = field(default_factory=list)

    def strip(self, x: Array) -> Array:
        """Zone of ground points on this side: 0 road, 1 sidewalk, 2 terrain, 3 the yards behind the border."""
        distance = x * self.sign
        zone = np.where((distance >= self.walk[0]) & (distance < self.walk[1]), 1, 2)
        zone = np.where(distance < self.curb + 0.25, 1, zone)
        return np.where(distance < self.curb, 0, np.where(distance > self.border, 3, zone))


@dataclass
class Street:
    """The plan of one image."""

    lanes: int  # in each direction
    parking: bool
    sides: tuple[Side, Side]  # left, right
    crossing: float | None  # where another street crosses, metres ahead
    feature: str

    @property
    def curb(self) -> float:
        """Half of the road's width."""
        return self.sides[0].curb

    def in_crossing(self, start: float, end: float) -> bool:
        """Whether a stretch along the street touches the crossing street."""
        return self.crossing is not None and start < self.crossing + 5 and end > self.crossing - 5


def plan_street(rng: Rng, feature: str) -> Street:
    """Draw the widths, the borders and the crossing of a street."""
    lanes, parking = int(rng.integers(1, 3)), bool(rng.random() < 0.6)
    curb = lanes * LANE + (2.2 if parking else 0.4)
    crossing = float(rng.uniform(20, 42)) if rng.random() < 0.5 else None
    sides = []
    for sign in (-1, 1):
        verge = rng.uniform(1.0, 2.5) if rng.random() < 0.4 else 0.25
        walk = (curb + verge, curb + verge + rng.uniform(2.0, 4.0))
        garden = rng.uniform(1.5, 5.0) if rng.random() < 0.35 else 0.0
        sides.append(Side(sign, curb, walk, walk[1] + garden))
    street = Street(lanes, parking, (sides[0], sides[1]), crossing, feature)
    featured = int(rng.integers(2))
    for number, side in enumerate(street.sides):
        _plan_border(street, side, rng, feature if number == featured else "")
    return street


def _plan_border(street: Street, side: Side, rng: Rng, feature: str) -> None:
    """Sections from near to far. The featured wall or fence begins where the camera first sees the border."""
    kinds = ("building", "wall", "fence", "hedge", "open")
    weights = np.array(
        choose(rng, ((8, 0.5, 0.5, 0.5, 0.5), (5, 1, 1, 1, 1.5), (2, 1.5, 1.5, 1.5, 2.5)))
    )
    z, promised = rng.uniform(0, 4), feature in ("wall", "fence")
    while z < FAR:
        kind = str(rng.choice(kinds, p=weights / weights.sum()))
        length = rng.uniform(8, 20)
        if promised and z + length > 1.6 * side.border:
            kind, length, promised = feature, rng.uniform(14, 22), False
        if street.in_crossing(z, z + length):
            assert street.crossing is not None
            if street.crossing - 5 - z > 4:
                side.sections.append(Section(kind, z, street.crossing - 5, _height(kind, rng)))
            z = street.crossing + 5
            continue
        side.sections.append(Section(kind, z, z + length, _height(kind, rng)))
        z += length + (rng.uniform(0, 3) if kind == "building" and rng.random() < 0.3 else 0)


def _height(kind: str, rng: Rng) -> float:
    ranges = {
        "building": (6.0, 17.0),
        "wall": (1.4, 3.0),
        "fence": (1.1, 2.0),
        "hedge": (1.0, 2.2),
        "open": (0.0, 0.0),
    }
    return float(rng.uniform(*ranges[kind]))


def paint_ground(canvas: Canvas, street: Street, look: Look, weather: Weather, rng: Rng) -> None:
    """Road with its markings, sidewalks, verges and yards, and the shadows of the buildings."""
    camera, palette = canvas.camera, look.palette
    top = max(0, int(np.ceil(camera.horizon + 1)))
    rows, columns = np.mgrid[top : camera.height, 0 : camera.width]
    dx, dy, dz = (d.astype(np.float32) for d in camera.rays(columns.ravel(), rows.ravel()))
    depth = -camera.eye / dy
    x, z = camera.x + depth * dx, depth * dz
    across, along = depth / camera.focal, depth * depth / (camera.focal * camera.eye)
    left, right = street.sides
    zone = np.where(x < 0, left.strip(x), right.strip(x))
    if street.crossing is not None:
        zone = np.where(np.abs(z - street.crossing) < 3.6, 0, zone)
    yard = choose(rng, (*palette.terrain, palette.terrain[0], palette.sidewalk[2]))
    surfaces = (
        choose(rng, palette.road),
        choose(rng, palette.sidewalk),
        choose(rng, palette.terrain),
        yard,
    )
    labels = (ROAD, SIDEWALK, TERRAIN, SIDEWALK if yard in palette.sidewalk else TERRAIN)
    colour = np.empty((x.size, 3), np.float32)
    label = np.empty(x.size, np.uint8)
    for number, (surface, name) in enumerate(zip(surfaces, labels)):
        here = zone == number
        colour[here] = surface.shade(x[here], z[here], across[here], along[here])
        label[here] = name
    curb = (zone == 1) & (np.abs(x) < street.curb + 0.25)
    colour[curb] = np.asarray(palette.sidewalk[0].colour) * 1.08
    _markings(colour, x, z, along, zone, street, palette.marking, rng)
    colour *= np.where(_in_shadow(x, z, street, canvas.sun), weather.shadow, 1.0)[:, None].astype(
        np.float32
    )
    shape = rows.shape
    canvas.image[top:] = np.clip(colour, 0, 255).reshape(*shape, 3)
    canvas.label[top:] = label.reshape(shape)
    canvas.depth[top:] = depth.reshape(shape)


def _markings(
    colour: Array,
    x: Array,
    z: Array,
    along: Array,
    zone: Array,
    street: Street,
    paint: RGB,
    rng: Rng,
) -> None:
    """Lines between lanes, zebra and stop line at a crossing, tram rails, worn by noise."""
    dashed, solid = (z % 6.0) < 3.0, np.ones_like(z, bool)
    lines = [(0.0, solid if rng.random() < 0.3 else dashed)]
    lines += [(side * LANE * lane, dashed) for side in (-1, 1) for lane in range(1, street.lanes)]
    if street.parking:
        lines += [(side * LANE * street.lanes, solid) for side in (-1, 1)]
    marked = np.zeros_like(z, bool)
    for place, present in lines:
        marked |= (np.abs(x - place) < 0.08) & present
    if street.crossing is not None:
        ahead = z - street.crossing
        marked &= np.abs(ahead) > 4.2
        marked |= (np.abs(np.abs(ahead) - 5.6) < 1.3) & ((x % 1.1) < 0.55)
        marked |= (np.abs(ahead + 8) < 0.2) & (x > 0)
    marked &= zone == 0
    wear = np.clip(1.4 - noise(x, z, 0.03) * rng.uniform(0.3, 1.2), 0, 1)[:, None]
    blend = (wear * np.clip(1.2 - along[:, None] / 6, 0.15, 0.95))[marked]
    colour[marked] = colour[marked] * (1 - blend) + np.asarray(paint, np.float32) * blend
    if street.feature == "tram":
        rails = (np.abs(np.abs(x + LANE / 2) - 0.72) < 0.06) & (zone == 0)
        colour[rails] *= 0.55


def _in_shadow(x: Array, z: Array, street: Street, sun: Array) -> Array:
    """Ground points that the border on the sunny side hides from the sun."""
    side = street.sides[1 if sun[0] > 0 else 0]
    height = np.zeros(int(FAR) + 60, np.float32)
    for section in side.sections:
        height[int(section.start) : int(section.end)] = section.height
    slope = abs(sun[0]) / max(sun[1], 0.1)
    cast = height[np.clip(z, 0, len(height) - 1).astype(int)] * slope
    return (x * side.sign > side.border - cast) & (cast > 0)


class Facade:
    """Windows, doors and shops on a wall; called as a canvas shader."""

    def __init__(self, palette: Palette, rng: Rng, height: float) -> None:
        self.material: Material = choose(rng, palette.facade)
        tone = vary(rng, self.material.colour, 0.07)
        self.material = Material(**{**self.material.__dict__, "colour": tone})
        self.curtain = self.material is not None and self.material.joint >= 0.4
        self.glass = np.asarray(vary(rng, choose(rng, palette.window), 0.1), np.float32)
        self.frame = np.asarray(
            choose(rng, ((236, 234, 228), (70, 60, 54), scale(tone, 0.7))), np.float32
        )
        self.plinth = np.asarray(scale(tone, rng.uniform(0.6, 0.9)), np.float32)
        self.door = np.asarray(choose(rng, ((96, 62, 40), (50, 70, 60), (70, 74, 84))), np.float32)
        self.storey = height / max(2, round(height / rng.uniform(2.9, 3.5)))
        self.pitch, self.share = rng.uniform(1.6, 3.0), rng.uniform(0.4, 0.65)
        self.tall = rng.uniform(0.45, 0.68)
        self.shop = rng.random() < 0.4
        self.lit, self.salt = rng.uniform(0.0, 0.2), int(rng.integers(4096))

    def __call__(self, u: Array, v: Array, du: Array, dv: Array) -> Array:
        """Colours (n, 3) at metres along the wall and above the ground."""
        colour = self.material.shade(u, v, du, dv)
        if self.curtain:
            return colour
        floor, column = np.floor(v / self.storey), np.floor(u / self.pitch)
        fu, fv = (
            np.abs(u / self.pitch - column - 0.5) * 2,
            np.abs(v / self.storey - floor - 0.52) * 2,
        )
        ground = floor < 1
        wide = np.where(ground & self.shop, 0.88, self.share)
        tall = np.where(ground & self.shop, 0.74, self.tall)
        seen = (fade(self.pitch / 3, du) * fade(self.storey / 3, dv))[:, None]
        colour = np.where(
            (ground & (v < self.storey * 0.94))[:, None], 0.5 * colour + 0.5 * self.plinth, colour
        )
        cell = hash_cells(column, floor, self.salt)
        pane = self.glass * (0.7 + 0.6 * cell[:, None])
        pane = np.where((cell > 1 - self.lit)[:, None], np.float32([250, 214, 140]), pane)
        pane = pane * (1.12 - 0.3 * fv[:, None])
        window, opening = (fu < wide) & (fv < tall), (fu < wide + 0.1) & (fv < tall + 0.08)
        colour = np.where(opening[:, None], colour * (1 - seen) + self.frame * seen, colour)
        mullion = (fu < 0.05) & ~(ground & self.shop)
        colour = np.where((window & ~mullion)[:, None], colour * (1 - seen) + pane * seen, colour)
        door = ground & (column % 4 == self.salt % 4) & (fu < 0.5) & (v < 2.2)
        return np.where(door[:, None], self.door * (1 - 0.3 * (fu[:, None] > 0.4)), colour)


def building(
    canvas: Canvas,
    x: float,
    outward: int,
    section: Section,
    deep: float,
    palette: Palette,
    rng: Rng,
) -> None:
    """A box with a facade along the street, a gable towards the camera, and a flat or pitched roof."""
    facade, start, end, height = (
        Facade(palette, rng, section.height),
        section.start,
        section.end,
        section.height,
    )
    back, roof = x + outward * deep, vary(rng, choose(rng, palette.roof))
    pitched = height < 13 and rng.random() < 0.55
    gable: list[Point] = [(x, 0, start), (back, 0, start), (back, height, start)]
    if pitched:
        ridge, top = (x + back) / 2, height + deep * 0.32
        gable.append((ridge, top, start))
        slope = np.array([-outward * (top - height), abs(ridge - x), 0.0])
        corners = [(x, height, start), (x, height, end), (ridge, top, end), (ridge, top, start)]
        canvas.face(corners, roof, BUILDING, slope / np.linalg.norm(slope))
    gable.append((x, height, start))
    canvas.surface(gable, 2, facade, BUILDING, canvas.light((0, 0, -1)))
    front: list[Point] = [(x, 0, start), (x, 0, end), (x, height, end), (x, height, start)]
    canvas.surface(front, 0, facade, BUILDING, canvas.light((-outward, 0, 0)))
    cornice = [
        (x - outward * 0.25, u, z)
        for u, z in ((height, start), (height, end), (height - 0.35, end), (height - 0.35, start))
    ]
    canvas.polygon(
        cornice,
        scale(roof if pitched else tuple(facade.frame), canvas.light((-outward, 0, 0))),
        BUILDING,
    )


def border_wall(
    canvas: Canvas, x: float, outward: int, section: Section, palette: Palette, rng: Rng
) -> None:
    """A free-standing wall along the street, with a coping."""
    material: Material = choose(rng, palette.wall)
    start, end, height = section.start, section.end, section.height
    top = x + outward * 0.35
    end_face: list[Point] = [
        (x, 0, start),
        (top, 0, start),
        (top, height, start),
        (x, height, start),
    ]
    canvas.surface(end_face, 2, material.shade, WALL, canvas.light((0, 0, -1)))
    face: list[Point] = [(x, 0, start), (x, 0, end), (x, height, end), (x, height, start)]
    canvas.surface(face, 0, material.shade, WALL, canvas.light((-outward, 0, 0)))
    coping = [
        (x - outward * 0.05, u, z)
        for u, z in ((height, start), (height, end), (height - 0.15, end), (height - 0.15, start))
    ]
    canvas.polygon(coping, scale(material.colour, 0.8 * canvas.light((-outward, 0, 0))), WALL)


def hedge(
    canvas: Canvas, x: float, outward: int, section: Section, palette: Palette, rng: Rng
) -> None:
    """A trimmed hedge along the street."""
    leaf = Material(vary(rng, choose(rng, palette.leaf)), 0.6, 0.05)
    start, end, height = section.start, section.end, section.height
    far = x + outward * 1.0
    for axis, corners in ((2, [(x, 0, start), (far, 0, start), (far, height, start), (x, height, start)]),
                          (0, [(x, 0, start), (x, 0, end), (x, height, end), (x, height, start)])):  # fmt: skip
        canvas.surface(corners, axis, leaf.shade, VEGETATION, 0.85 * canvas.ambient + 0.15)


def border_fence(canvas: Canvas, x: float, section: Section, palette: Palette, rng: Rng) -> None:
    """Railing, pickets or planks along the street; as in Cityscapes the gaps belong to the fence."""
    start, end, height = max(section.start, 2.0), section.end, section.height
    colour = vary(rng, choose(rng, palette.fence))
    face: list[Point] = [(x, 0, start), (x, 0, end), (x, height, end), (x, height, start)]
    style = choose(rng, ("rail", "picket", "plank"))
    if style == "plank":
        planks = Material(colour, 0.15, 0.03, "tiles", (0.2, 40.0), 0.4, 0.2)
        canvas.surface(face, 0, planks.shade, FENCE, canvas.light((-np.sign(x), 0, 0)))
        return
    canvas.polygon(face, None, FENCE)
    for up in (0.12, 0.92) if style == "rail" else (0.3, 0.8):
        canvas.limb((x, up * height, start), (x, up * height, end), 0.03, colour, FENCE)
        for a in np.arange(start, end, 2.0):  # the bar again in short pieces, thin where it is far
            canvas.limb(
                (x, up * height, a), (x, up * height, min(a + 2, end)), 0.035, colour, FENCE
            )
    step, radius = (0.32, 0.02) if style == "rail" else (0.22, 0.05)
    for z in np.arange(start, min(end, 45.0), step):
        canvas.limb((x, 0.05, z), (x, height, z), radius, colour, FENCE)


def border_items(street: Street, palette: Palette, rng: Rng) -> list[Item]:
    """What stands on and behind the borders, keyed by the nearest point of each."""
    items: list[Item] = []
    for side in street.sides:
        x = side.sign * side.border
        for section in side.sections:
            seeded, key = np.random.default_rng(rng.integers(1 << 62)), section.start
            if section.kind == "building":
                paint = partial(
                    building,
                    x=x,
                    outward=side.sign,
                    section=section,
                    deep=rng.uniform(8, 14),
                    palette=palette,
                    rng=seeded,
                )
                items.append((key, paint))
                continue
            if section.kind == "wall":
                items.append(
                    (
                        key,
                        partial(
                            border_wall,
                            x=x,
                            outward=side.sign,
                            section=section,
                            palette=palette,
                            rng=seeded,
                        ),
                    )
                )
            elif section.kind == "fence":
                items.append(
                    (key, partial(border_fence, x=x, section=section, palette=palette, rng=seeded))
                )
            elif section.kind == "hedge":
                items.append(
                    (
                        key,
                        partial(
                            hedge,
                            x=x,
                            outward=side.sign,
                            section=section,
                            palette=palette,
                            rng=seeded,
                        ),
                    )
                )
            items += _yard(side, section, palette, rng)
    for x, start in zip(np.arange(-90, 90, 14.0), rng.uniform(FAR, FAR + 40, 13)):
        if abs(x) > 8 or rng.random() < 0.5:
            block = Section("building", float(start), float(start) + 10, float(rng.uniform(5, 16)))
            items.append(
                (
                    block.start,
                    partial(
                        building, x=x, outward=1, section=block, deep=13.0, palette=palette, rng=rng
                    ),
                )
            )
    return items


def _yard(side: Side, section: Section, palette: Palette, rng: Rng) -> list[Item]:
    """Trees, bushes and at times a house behind a low border."""
    items: list[Item] = []
    for _ in range(int(rng.integers(1, 4))):
        frame = Frame(
            side.sign * (side.border + rng.uniform(3, 9)), rng.uniform(section.start, section.end)
        )
        kind = "bush" if rng.random() < 0.35 else None
        items.append(
            (frame.z, partial(things.tree, frame=frame, palette=palette, rng=rng, kind=kind))
        )
    if rng.random() < 0.55:
        house = Section("building", section.start, section.end, float(rng.uniform(5, 9)))
        x = side.sign * (side.border + rng.uniform(10, 16))
        items.append(
            (
                house.start,
                partial(
                    building,
                    x=x,
                    outward=side.sign,
                    section=house,
                    deep=9.0,
                    palette=palette,
                    rng=rng,
                ),
            )
        )
    return items


VEHICLES = {  # painter, metres it takes in its lane
    "car": (things.car, 5.5), "truck": (things.truck, 9.0), "bus": (things.bus, 13.0), "tram": (things.tram, 24.0),
    "cyclist": (partial(things.bicycle, ridden=True), 3.0), "motorcyclist": (partial(things.motorcycle, ridden=True), 3.5),
    "motorcycle": (things.motorcycle, 3.0), "bicycle": (things.bicycle, 2.5),
}  # fmt: skip


class Traffic:
    """Fills lanes, parking strips and sidewalks with things to be painted."""

    def __init__(self, street: Street, camera: Camera, look: Look, rng: Rng) -> None:
        self.street, self.camera, self.look, self.rng = street, camera, look, rng
        self.items: list[Item] = []

    def nearest(self, x: float, margin: float = 1.0) -> float:
        """The smallest Z at which a thing at ``x`` lies inside the frame."""
        turn = np.arctan2(self.camera.width / 2, self.camera.focal) * 0.95
        angle = turn + self.camera.yaw * np.sign(x - self.camera.x)
        return max(5.0, abs(x - self.camera.x) / np.tan(max(angle, 0.2)) + margin)

    def add(self, painter: Callable[..., None], x: float, z: float, heading: float = 0.0) -> None:
        """Place a thing."""
        frame = Frame(x, z, heading)
        paint = partial(
            painter,
            frame=frame,
            palette=self.look.palette,
            rng=np.random.default_rng(self.rng.integers(1 << 62)),
        )
        self.items.append((self.camera.depth(x, z), paint))

    def vehicle(self, kind: str, x: float, z: float, heading: float) -> float:
        """Place a vehicle whose near end is at ``z``; returns where its far end is."""
        painter, length = VEHICLES[kind]
        self.add(painter, x, z + length / 2, heading)
        return z + length

    def fill_lanes(self) -> None:
        """Moving vehicles; the featured one comes first."""
        rng, feature = self.rng, self.street.feature
        lanes = [side * LANE * (n + 0.5) for side in (-1, 1) for n in range(self.street.lanes)]
        featured = -LANE / 2 if feature == "tram" else float(rng.choice(lanes))
        kinds = ("car", "truck", "bus", "cyclist", "motorcyclist")
        for x in lanes:
            own = x > 0
            heading = (0.0 if own else np.pi) + rng.normal(scale=0.02)
            z = self.nearest(x, 1.5) + rng.uniform(0, 10) + (4 if own else 0)
            if x == featured and feature in VEHICLES and feature != "motorcycle":
                z = self.vehicle(feature, x, self.nearest(x, 1.5) + rng.uniform(0, 5), heading)
            while z < 80:
                z += rng.exponential(14) / self.look.rig.traffic + 3
                kind = str(rng.choice(kinds, p=(0.84, 0.04, 0.04, 0.04, 0.04)))
                aside = 0.9 if kind == "cyclist" else 0.0
                z = self.vehicle(kind, x + np.sign(x) * aside, z, heading)

    def fill_parking(self) -> None:
        """Parked cars, seldom a truck, with gaps."""
        for sign in (-1, 1) if self.street.parking else ():
            x, density = sign * (self.street.curb - 1.0), self.rng.uniform(0.2, 0.9)
            z = self.nearest(x) + self.rng.uniform(0, 4)
            while z < 70:
                if self.rng.random() < density and not self.street.in_crossing(z - 4, z + 9):
                    kind = "truck" if self.rng.random() < 0.04 else "car"
                    z = self.vehicle(kind, x, z, 0.0 if sign > 0 else np.pi)
                z += self.rng.uniform(0.3, 2.5)

    def fill_sidewalks(self) -> None:
        """Pedestrians, parked cycles, poles, lamps, signs, signals, trees and bins."""
        rng = self.rng
        for side in self.street.sides:
            for _ in range(rng.poisson(2.2 * self.look.rig.crowd)):
                x = side.sign * rng.uniform(side.walk[0] + 0.3, side.walk[1] - 0.3)
                z = self.nearest(x) + rng.exponential(12)
                for companion in range(1 + int(rng.random() < 0.25)):
                    self.add(
                        things.person,
                        x + 0.6 * companion,
                        z,
                        rng.choice((0, np.pi)) + rng.normal(scale=0.4),
                    )
            curb = side.sign * (side.curb + 0.6)
            parked = (
                rng.choice(("motorcycle", "bicycle"), p=(0.3, 0.7)) if rng.random() < 0.35 else None
            )
            if self.street.feature == "motorcycle" and side.sign == 1:
                parked = "motorcycle"
            if parked:
                z = self.nearest(curb) + rng.uniform(0, 6)
                across = rng.random() < 0.5
                for place in range(int(rng.integers(1, 4))):
                    turn = (
                        side.sign * np.pi / 2 + rng.normal(scale=0.15)
                        if across
                        else rng.normal(scale=0.1)
                    )
                    self.add(
                        VEHICLES[str(parked)][0],
                        curb + 0.5 * side.sign,
                        z + place * (0.9 if across else 2.2),
                        turn,
                    )
            self._furniture(side, curb)

    def _furniture(self, side: Side, curb: float) -> None:
        rng, over_road = self.rng, 0.0 if side.sign > 0 else np.pi
        for z in np.arange(self.nearest(curb) + rng.uniform(0, 12), 90, rng.uniform(18, 30)):
            self.add(things.street_lamp, curb, float(z), over_road)
        for _ in range(rng.poisson(1.0)):
            self.add(things.traffic_sign, curb, self.nearest(curb) + rng.exponential(10))
        if rng.random() < 0.3:
            self.add(
                things.bin_,
                side.sign * (side.walk[1] - 0.4),
                self.nearest(curb, 4) + rng.exponential(8),
            )
        if self.street.crossing is not None:
            self.add(things.traffic_light, curb, self.street.crossing - 4.2, over_road)
        elif rng.random() < 0.3:
            self.add(things.traffic_light, curb, self.nearest(curb) + rng.uniform(0, 15), over_road)
        gap = rng.uniform(7, 14)
        if rng.random() < 0.45:
            for z in np.arange(self.nearest(curb, 3) + rng.uniform(0, gap), 90, gap):
                if not self.street.in_crossing(z, z):
                    self.add(things.tree, curb + 0.4 * side.sign, float(z))

    def fill_crossing(self) -> None:
        """People on the zebra and vehicles from the side."""
        rng, crossing = self.rng, self.street.crossing
        if crossing is None:
            if rng.random() < 0.3:
                x = rng.uniform(-0.8, 0.8) * self.street.curb
                self.add(
                    things.person,
                    x,
                    self.nearest(x, 6) + rng.exponential(6),
                    choose(rng, (1.57, -1.57)),
                )
            return
        for _ in range(rng.poisson(1.8 * self.look.rig.crowd)):
            self.add(
                things.person,
                rng.uniform(-1, 1) * self.street.curb,
                crossing - rng.uniform(4.8, 6.4),
                choose(rng, (1.57, -1.57)),
            )
        if rng.random() < 0.5:
            kind = str(
                rng.choice(
                    ("car", "cyclist", "motorcyclist", "truck", "bus"),
                    p=(0.4, 0.25, 0.15, 0.1, 0.1),
                )
            )
            sign = choose(rng, (1, -1))
            self.add(
                VEHICLES[kind][0],
                rng.uniform(-0.9, 0.9) * self.street.curb,
                crossing - 1.6 * sign,
                sign * np.pi / 2,
            )

    def all_items(self) -> list[Item]:
        """Everything between the borders."""
        self.fill_lanes()
        self.fill_parking()
        self.fill_sidewalks()
        self.fill_crossing()
        return self.items


def _set_camera(look: Look, street: Street, rng: Rng, height: int, width: int) -> Camera:
    rig = look.rig
    lane = (int(rng.integers(street.lanes)) + 0.5) * LANE
    focal, horizon = rng.uniform(*rig.focal) * width, rng.uniform(*rig.horizon) * height
    return Camera(
        width,
        height,
        focal,
        horizon,
        rng.uniform(*rig.eye),
        lane + rng.normal(scale=0.25),
        rng.normal(scale=rig.yaw / 2),
    )


def _bonnet(image: Array, label: Array, rng: Rng) -> None:
    """The own car's bonnet at the lower edge, ignored as in Cityscapes."""
    height, width = label.shape
    centre, axes = (width // 2, int(height * 1.13)), (int(width * 0.46), int(height * 0.21))
    mask = cv2.ellipse(np.zeros_like(label), centre, axes, 0, 0, 360, 1, -1) > 0
    shine = np.linspace(70, 26, height - int(height * 0.9), dtype=np.float32)
    tone = np.concatenate([np.full(height - len(shine), 70, np.float32), shine])[:, None, None]
    image[mask] = np.broadcast_to(tone * rng.uniform(0.7, 1.1), image.shape)[mask]
    label[mask] = IGNORE


def render(domain: str, seed: int, index: int, height: int, width: int) -> tuple[Array, Array]:
    """Image ``index`` of a domain: RGB (H, W, 3) uint8 and train ids (H, W) uint8.

    ``domain``: source, target or val; target and val share their look and differ in their draws. Labels exist for target too:
    they measure an oracle, and are never written to disk.
    """
    look = LOOKS[domain]
    rng = np.random.default_rng([seed, list(LOOKS).index(domain), index])
    weather: Weather = look.weathers[int(rng.integers(len(look.weathers)))]
    street = plan_street(rng, FEATURES[index % len(FEATURES)])
    camera = _set_camera(look, street, rng, SUPERSAMPLING * height, SUPERSAMPLING * width)
    canvas = Canvas(camera, weather.sun, weather.ambient)
    paint_sky(canvas, weather, rng, SKY)
    paint_ground(canvas, street, look, weather, rng)
    for items in (
        border_items(street, look.palette, rng),
        Traffic(street, camera, look, rng).all_items(),
    ):
        for _, paint in sorted(items, key=lambda item: -item[0]):
            paint(canvas)
    exposed = expose(canvas, weather, rng)
    image = cv2.resize(exposed, (width, height), interpolation=cv2.INTER_AREA)
    label = np.ascontiguousarray(canvas.label[::SUPERSAMPLING, ::SUPERSAMPLING])
    if look.rig.bonnet:
        _bonnet(image, label, rng)
    return sense(image, weather, look.sensor, rng), label
