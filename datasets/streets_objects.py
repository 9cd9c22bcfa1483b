"""The things that stand and move in Streets: each function paints one, in metres, on the canvas."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from streets_canvas import RGB, Array, Canvas, Frame, Point, scale, vary
from streets_looks import Palette

CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign", "vegetation", "terrain",
    "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle",
)  # fmt: skip
(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN,
 SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = range(19)  # fmt: skip
IGNORE = 255

Rng = np.random.Generator
RUBBER: RGB = (24, 24, 26)
CIRCLE = [(np.cos(a), np.sin(a)) for a in np.linspace(0, 2 * np.pi, 16, endpoint=False)]


def choose(rng: Rng, options: tuple) -> RGB:
    """One of the options, all as likely."""
    return options[int(rng.integers(len(options)))]


def wheel(
    canvas: Canvas, frame: Frame, along: float, across: float, radius: float, label: int
) -> None:
    """A car's wheel, seen from the side."""
    for size, colour in ((1.0, RUBBER), (0.55, (120, 122, 126))):
        ring = [
            frame.world(along + size * radius * c, radius + size * radius * s, across)
            for c, s in CIRCLE
        ]
        canvas.polygon(ring, colour, label)


@dataclass(frozen=True)
class Body:
    """A vehicle as a side profile (along, up) pulled out across; metres, front towards positive along."""

    label: int
    profile: tuple[
        tuple[float, float], ...
    ]  # clockwise from the lower rear corner; the last edge is the floor
    glass: tuple[int, ...]  # edges of the profile made of glass
    windows: tuple[tuple[tuple[float, float], ...], ...]  # polygons on each side
    width: float
    wheels: tuple[float, ...]
    radius: float = 0.33

    @property
    def length(self) -> float:
        """Metres from rear to front."""
        return self.profile[-1][0] - self.profile[0][0]


def row_of_windows(start: float, end: float, count: int, low: float, high: float) -> tuple:
    """Rectangular windows between two places along a side."""
    pitch = (end - start) / count
    lefts = [start + i * pitch for i in range(count)]
    return tuple(
        ((a, low), (a, high), (a + 0.86 * pitch, high), (a + 0.86 * pitch, low)) for a in lefts
    )


SEDAN = Body(
    CAR, ((-2.25, 0.3), (-2.28, 0.85), (-1.75, 0.98), (-1.1, 1.42), (0.3, 1.44), (1.05, 0.98), (2.1, 0.82), (2.28, 0.6), (2.25, 0.3)),
    (2, 4), (((-1.5, 0.98), (-1.02, 1.34), (-0.42, 1.36), (-0.42, 0.98)), ((-0.32, 0.98), (-0.32, 1.36), (0.25, 1.36), (0.8, 0.98))),
    1.8, (-1.4, 1.4),
)  # fmt: skip
HATCHBACK = Body(
    CAR, ((-1.9, 0.3), (-1.95, 0.95), (-1.6, 1.48), (0.2, 1.52), (1.0, 1.0), (1.75, 0.86), (1.95, 0.6), (1.9, 0.3)),
    (1, 3), (((-1.6, 1.0), (-1.45, 1.42), (-0.5, 1.44), (-0.5, 1.0)), ((-0.4, 1.0), (-0.4, 1.44), (0.15, 1.44), (0.75, 1.0))),
    1.75, (-1.2, 1.2), 0.31,
)  # fmt: skip
VAN = Body(
    CAR, ((-2.4, 0.35), (-2.42, 1.1), (-2.3, 1.95), (1.0, 2.0), (1.75, 1.2), (2.35, 1.02), (2.42, 0.6), (2.4, 0.35)),
    (1, 3), (((-2.1, 1.15), (-2.1, 1.75), (-0.7, 1.78), (-0.7, 1.15)), ((0.0, 1.15), (0.0, 1.78), (0.9, 1.8), (1.45, 1.15))),
    1.95, (-1.5, 1.5), 0.35,
)  # fmt: skip
CARS = (SEDAN, HATCHBACK, VAN, SEDAN, HATCHBACK)
CAB = Body(
    TRUCK, ((1.5, 0.5), (1.5, 2.7), (3.0, 2.75), (3.45, 1.5), (3.5, 0.5)),
    (2,), (((2.0, 1.6), (2.0, 2.4), (2.9, 2.4), (3.25, 1.6)),), 2.3, (2.5,), 0.48,
)  # fmt: skip
CARGO = Body(
    TRUCK, ((-3.8, 0.9), (-3.8, 3.5), (1.3, 3.5), (1.3, 0.9)), (), (), 2.45, (-2.6, -1.5), 0.48
)
COACH = Body(
    BUS, ((-5.5, 0.35), (-5.6, 1.2), (-5.5, 3.1), (5.3, 3.15), (5.55, 1.1), (5.5, 0.35)),
    (1, 3), row_of_windows(-5.2, 4.9, 7, 1.35, 2.65), 2.5, (-3.2, 3.4), 0.48,
)  # fmt: skip
TRAM = Body(
    TRAIN, ((-11.0, 0.25), (-11.3, 1.2), (-10.8, 3.5), (10.8, 3.5), (11.3, 1.2), (11.0, 0.25)),
    (1, 3), row_of_windows(-10.4, 10.6, 12, 1.3, 2.6), 2.6, (),
)  # fmt: skip


def paint_body(
    canvas: Canvas, frame: Frame, body: Body, colour: RGB, glass: RGB, trim: RGB | None = None
) -> None:
    """Paint the faces of a body that look at the camera, far ones first."""
    half, count = body.width / 2, len(body.profile)
    faces = []
    for edge in range(count - 1):
        (a0, u0), (a1, u1) = body.profile[edge], body.profile[edge + 1]
        corners = [
            frame.world(a, u, c)
            for a, u, c in ((a0, u0, half), (a1, u1, half), (a1, u1, -half), (a0, u0, -half))
        ]
        outward = frame.direction(u0 - u1, a1 - a0, 0) / np.hypot(a1 - a0, u1 - u0)
        tone = glass if edge in body.glass else colour
        faces.append(
            (np.mean([canvas.camera.depth(p[0], p[2]) for p in corners]), corners, tone, outward)
        )
    for _, corners, tone, outward in sorted(faces, key=lambda face: -face[0]):
        canvas.face(corners, tone, body.label, outward)
    for side in (1, -1):
        outline = [frame.world(a, u, side * half) for a, u in body.profile]
        if canvas.face(outline, colour, body.label, frame.direction(0, 0, side)):
            _paint_side(canvas, frame, body, side * (half + 0.01), glass, trim)


def _paint_side(
    canvas: Canvas, frame: Frame, body: Body, across: float, glass: RGB, trim: RGB | None
) -> None:
    low, high = body.profile[0], body.profile[-1]
    if trim is not None:
        band = ((low[0], 0.6), (low[0], 1.05), (high[0], 1.05), (high[0], 0.6))
        canvas.polygon([frame.world(a, u, across) for a, u in band], trim, body.label)
    for window in body.windows:
        canvas.polygon([frame.world(a, u, across) for a, u in window], glass, body.label)
    for along in body.wheels:
        wheel(canvas, frame, along, across, body.radius, body.label)


def _lamps(
    canvas: Canvas, frame: Frame, along: float, up: float, across: float, label: int
) -> None:
    """Head lamps in front, tail lamps behind, whichever side the camera sees."""
    for place, colour in ((along, (255, 246, 214)), (-along, (210, 26, 22))):
        outward = frame.direction(np.sign(place), 0, 0)
        for side in (across, -across):
            inner = side * 0.62
            corners = [
                frame.world(place * 1.01, u, c)
                for u, c in ((up, side), (up + 0.16, side), (up + 0.16, inner), (up, inner))
            ]
            if canvas.face(corners, scale(colour, 1 / canvas.light(outward)), label, outward):
                canvas.glow(frame.world(place * 1.01, up, side * 0.8), 0.16, colour)
    plate = [
        frame.world(-along * 1.01, u, c)
        for u, c in ((0.5, 0.26), (0.62, 0.26), (0.62, -0.26), (0.5, -0.26))
    ]
    canvas.face(plate, (226, 226, 214), label, frame.direction(-1, 0, 0))


def _contact_shadow(canvas: Canvas, frame: Frame, length: float, width: float) -> None:
    a, c = length / 2 + 0.15, width / 2 + 0.2
    canvas.darken([frame.world(p, 0.0, q) for p, q in ((-a, c), (a, c), (a, -c), (-a, -c))], 0.45)


def car(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A sedan, hatchback or van."""
    body = CARS[int(rng.integers(len(CARS)))]
    _contact_shadow(canvas, frame, body.length, body.width)
    for along in body.wheels:
        wheel(canvas, frame, along, 0.0, body.radius, CAR)
    paint_body(
        canvas, frame, body, vary(rng, choose(rng, palette.paint)), choose(rng, palette.window)
    )
    _lamps(canvas, frame, body.profile[-1][0], 0.68, body.width / 2, CAR)


def truck(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A lorry with a box."""
    _contact_shadow(canvas, frame, 7.0, 2.4)
    paint, glass = vary(rng, choose(rng, palette.paint)), choose(rng, palette.window)
    cargo = vary(rng, choose(rng, palette.cargo))
    front, back = frame.world(2.5, 0, 0), frame.world(-1.2, 0, 0)
    chassis = Body(TRUCK, ((-3.7, 0.5), (-3.7, 0.95), (1.6, 0.95), (1.6, 0.5)), (), (), 2.1, ())
    paint_body(canvas, frame, chassis, (40, 40, 42), glass)
    parts = [
        (canvas.camera.depth(front[0], front[2]), CAB, paint),
        (canvas.camera.depth(back[0], back[2]), CARGO, cargo),
    ]
    for _, body, colour in sorted(parts, key=lambda part: -part[0]):
        paint_body(
            canvas,
            frame,
            body,
            colour,
            glass,
            scale(paint, 0.9) if body is CARGO and rng.random() < 0.4 else None,
        )
    _lamps(canvas, frame, 3.6, 0.75, 1.1, TRUCK)


def bus(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A city bus."""
    _contact_shadow(canvas, frame, COACH.length, 2.5)
    colour = vary(rng, choose(rng, palette.livery))
    paint_body(canvas, frame, COACH, colour, choose(rng, palette.window), scale(colour, 0.7))
    board = [
        frame.world(5.5, u, c) for u, c in ((2.75, 0.9), (3.05, 0.9), (3.05, -0.9), (2.75, -0.9))
    ]
    canvas.face(board, (250, 190, 60), BUS, frame.direction(1, 0, 0))
    _lamps(canvas, frame, 5.6, 0.7, 1.2, BUS)


def tram(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A tram; Cityscapes counts it as a train."""
    _contact_shadow(canvas, frame, TRAM.length, 2.6)
    colour = vary(rng, choose(rng, palette.livery))
    paint_body(canvas, frame, TRAM, colour, choose(rng, palette.window), (236, 232, 222))
    for a, b in (((0, 3.5), (0.9, 4.1)), ((0.9, 4.1), (0.0, 4.7))):
        canvas.limb(frame.world(*a, 0), frame.world(*b, 0), 0.05, (50, 50, 52), TRAIN)
    _lamps(canvas, frame, 11.2, 0.8, 1.1, TRAIN)


POSES = {  # joints in metres for a height of 1.75: along, up
    "walk": dict(hip=(0, 0.92), neck=(0.04, 1.45), head=(0.06, 1.63), knees=((0.2, 0.5), (-0.05, 0.5)),
                 feet=((0.28, 0.06), (-0.34, 0.1)), hands=((0.25, 0.85), (-0.22, 0.85))),
    "stand": dict(hip=(0, 0.92), neck=(0, 1.45), head=(0.02, 1.63), knees=((0.02, 0.5), (0.0, 0.5)),
                  feet=((0.03, 0.05), (0.0, 0.05)), hands=((0.06, 0.82), (0.22, 1.1))),
    "cycle": dict(hip=(-0.22, 1.0), neck=(0.16, 1.5), head=(0.26, 1.68), knees=((0.2, 0.82), (0.1, 0.62)),
                  feet=((0.08, 0.45), (-0.04, 0.18)), hands=((0.48, 1.05), (0.48, 1.05))),
    "drive": dict(hip=(-0.25, 0.86), neck=(0.0, 1.38), head=(0.06, 1.57), knees=((0.22, 0.78), (0.22, 0.78)),
                  feet=((0.02, 0.32), (0.02, 0.32)), hands=((0.5, 1.0), (0.5, 1.0))),
}  # fmt: skip


def figure(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng, label: int, pose: str) -> None:
    """A human being: limbs, clothes, hair or a helmet."""
    size = (
        rng.uniform(0.95, 1.08) if label == RIDER or rng.random() > 0.12 else rng.uniform(0.65, 0.8)
    )
    joints, build = POSES[pose], rng.uniform(0.9, 1.15)
    top, trousers = (
        vary(rng, choose(rng, palette.cloth)),
        vary(rng, scale(choose(rng, palette.cloth), 0.75)),
    )
    skin, hair = (
        choose(rng, palette.skin),
        vary(rng, choose(rng, ((40, 30, 26), (92, 66, 44), (180, 150, 96), (150, 148, 146))), 0.2),
    )

    def at(joint: tuple[float, float], across: float) -> Point:
        return frame.world(size * joint[0], size * joint[1], size * across)

    def bar(a: Point, b: Point, radius: float, colour: RGB) -> None:
        canvas.limb(a, b, size * build * radius, colour, label)

    hip, neck = joints["hip"], joints["neck"]
    for side, knee, foot in zip((0.1, -0.1), joints["knees"], joints["feet"]):
        tone = trousers if side > 0 else scale(trousers, 0.82)
        bar(at(hip, side), at(knee, side), 0.095, tone)
        bar(at(knee, side), at(foot, side), 0.07, tone)
        bar(at(foot, side), at((foot[0] + 0.1, foot[1]), side), 0.055, scale(tone, 0.4))
    bar(at((neck[0], neck[1] - 0.08), -0.2), at(joints["hands"][1], -0.26), 0.055, scale(top, 0.8))
    for across in (-0.1, 0.1, 0.0):
        bar(
            at((neck[0], neck[1] - 0.1), across),
            at(hip, 0.8 * across),
            0.125,
            top if across else scale(top, 1.06),
        )
    if pose in ("walk", "stand") and rng.random() < 0.3:  # coat
        hem = (hip[0] + 0.02, 0.62)
        bar(at(neck, 0), at(hem, 0.06), 0.15, top)
        bar(at(hip, 0), at(hem, -0.06), 0.17, top)
    bar(at((neck[0], neck[1] - 0.08), 0.2), at(joints["hands"][0], 0.26), 0.055, scale(top, 0.9))
    head = joints["head"]
    bar(at(neck, 0), at(head, 0), 0.06, skin)
    canvas.ball(at(head, 0), size * 0.115, skin, label)
    crown = hair if pose in ("walk", "stand") else vary(rng, choose(rng, palette.paint))
    canvas.ball(
        at((head[0] - 0.03, head[1] + 0.06), 0),
        size * (0.105 if pose != "drive" else 0.15),
        crown,
        label,
    )


def person(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A pedestrian."""
    _contact_shadow(canvas, frame, 0.1, 0.1)
    figure(canvas, frame, palette, rng, PERSON, "walk" if rng.random() < 0.7 else "stand")


def _spoked_wheel(
    canvas: Canvas, frame: Frame, along: float, radius: float, tyre: float, label: int
) -> None:
    ring = [frame.world(along + radius * c, radius + radius * s, 0) for c, s in CIRCLE]
    canvas.polygon(ring, None, label)
    for a, b in zip(ring, ring[1:] + ring[:1]):
        canvas.limb(a, b, tyre, RUBBER, label)
    for spoke in range(0, 16, 4):
        canvas.limb(ring[spoke], frame.world(along, radius, 0), 0.008, (150, 150, 150), None)


def bicycle(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng, ridden: bool = False) -> None:
    """A bicycle, with its rider when it is ridden."""
    colour = vary(rng, choose(rng, palette.paint))
    _contact_shadow(canvas, frame, 1.4, 0.0)
    for along in (-0.54, 0.54):
        _spoked_wheel(canvas, frame, along, 0.35, 0.03, BICYCLE)
    bars = (((-0.54, 0.35), (-0.08, 0.32)), ((-0.08, 0.32), (-0.22, 0.88)), ((-0.54, 0.35), (-0.2, 0.75)),
            ((-0.2, 0.78), (0.36, 0.8)), ((-0.08, 0.32), (0.36, 0.75)), ((0.34, 0.95), (0.54, 0.35)))  # fmt: skip
    for a, b in bars:
        canvas.limb(frame.world(*a, 0), frame.world(*b, 0), 0.032, colour, BICYCLE)
    canvas.limb(
        frame.world(0.34, 1.02, 0.26), frame.world(0.34, 1.02, -0.26), 0.03, RUBBER, BICYCLE
    )
    canvas.limb(frame.world(-0.34, 0.92, 0), frame.world(-0.12, 0.92, 0), 0.05, RUBBER, BICYCLE)
    if ridden:
        figure(canvas, frame, palette, rng, RIDER, "cycle")


def motorcycle(
    canvas: Canvas, frame: Frame, palette: Palette, rng: Rng, ridden: bool = False
) -> None:
    """A motorcycle or scooter, with its rider when it is ridden."""
    colour = vary(rng, choose(rng, palette.paint))
    _contact_shadow(canvas, frame, 1.8, 0.3)
    for along in (-0.68, 0.68):
        _spoked_wheel(canvas, frame, along, 0.31, 0.075, MOTORCYCLE)
    parts = (((-0.68, 0.5), (0.0, 0.42), 0.12, (60, 60, 62)), ((-0.05, 0.35), (0.3, 0.45), 0.17, (84, 84, 88)),
             ((-0.85, 0.8), (-0.2, 0.74), 0.09, RUBBER), ((-0.9, 0.68), (-0.5, 0.62), 0.1, colour),
             ((-0.1, 0.78), (0.36, 0.84), 0.15, colour), ((0.42, 1.0), (0.7, 0.34), 0.06, (140, 140, 144)),
             ((0.5, 0.62), (0.66, 0.66), 0.1, colour))  # fmt: skip
    for a, b, radius, tone in parts:
        canvas.limb(frame.world(*a, 0), frame.world(*b, 0), radius, tone, MOTORCYCLE)
    canvas.limb(
        frame.world(0.4, 1.02, 0.34), frame.world(0.4, 1.02, -0.34), 0.03, RUBBER, MOTORCYCLE
    )
    canvas.ball(frame.world(0.55, 0.9, 0), 0.11, (250, 244, 214), MOTORCYCLE)
    if ridden:
        figure(canvas, frame, palette, rng, RIDER, "drive")


def tree(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng, kind: str | None = None) -> None:
    """A round tree, a conifer, a bush, or a tree without leaves."""
    height = rng.uniform(4.5, 9.0)
    if kind is None:
        kind = (
            "bare" if rng.random() < palette.bare_trees else choose(rng, ("round", "round", "cone"))
        )
    bark = vary(rng, (86, 68, 54))
    if kind == "bush":
        _crown(
            canvas,
            frame,
            rng,
            choose(rng, palette.leaf),
            np.array([0, 0.55, 0]),
            np.array([1.1, 0.6, 1.0]),
            40,
        )
        return
    _contact_shadow(canvas, frame, 0.4, 0.4)
    fork = height * rng.uniform(0.3, 0.42)
    canvas.limb(
        frame.world(0, 0, 0), frame.world(0, fork * 1.2, 0), 0.02 * height + 0.04, bark, VEGETATION
    )
    if kind == "bare":
        _branch(
            canvas,
            np.array(frame.world(0, fork, 0)),
            np.array([0, 1.0, 0]),
            height * 0.3,
            bark,
            rng,
            4,
        )
        return
    leaf = vary(rng, choose(rng, palette.leaf))
    if kind == "cone":
        for level in np.linspace(0, 1, 6):
            reach = 0.26 * height * (1.05 - level)
            centre = np.array([0, 0.18 * height + 0.78 * height * level, 0])
            _crown(canvas, frame, rng, leaf, centre, np.array([reach, 0.1 * height, reach]), 26)
    else:
        spread = height * rng.uniform(0.24, 0.34)
        _crown(
            canvas,
            frame,
            rng,
            leaf,
            np.array([0, 0.66 * height, 0]),
            np.array([spread, 0.32 * height, spread]),
            120,
        )


def _crown(
    canvas: Canvas, frame: Frame, rng: Rng, leaf: RGB, centre: Array, reach: Array, count: int
) -> None:
    """A cloud of leaf blobs, dark below and inside, bright above."""
    offsets = rng.normal(size=(count, 3))
    offsets *= (rng.random((count, 1)) ** 0.4) / np.linalg.norm(offsets, axis=1, keepdims=True)
    for offset in offsets[np.argsort(offsets[:, 1] + 0.3 * rng.random(count))]:
        tone = 0.62 + 0.3 * (offset[1] + 1) / 2 + 0.18 * canvas.light((0, 1, 0)) * rng.random()
        radius = float(reach.mean()) * rng.uniform(0.16, 0.3)
        along, up, across = centre + offset * reach
        canvas.ball(frame.world(along, max(up, 0.1), across), radius, scale(leaf, tone), VEGETATION)


def _branch(
    canvas: Canvas, start: Array, direction: Array, length: float, bark: RGB, rng: Rng, level: int
) -> None:
    end = start + direction * length
    canvas.limb(tuple(start), tuple(end), 0.022 * length + 0.006, bark, VEGETATION)
    if level:
        for _ in range(3):
            turn = direction + rng.normal(scale=0.55, size=3) * np.array([1, 0.6, 1])
            _branch(
                canvas,
                end,
                turn / np.linalg.norm(turn),
                length * rng.uniform(0.6, 0.8),
                bark,
                rng,
                level - 1,
            )


def street_lamp(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A lamp whose arm reaches over the road (towards positive across)."""
    colour, height = choose(rng, palette.metal), rng.uniform(6, 8)
    canvas.limb(frame.world(0, 0, 0), frame.world(0, height, 0), 0.085, colour, POLE)
    canvas.limb(frame.world(0, height, 0), frame.world(0, height + 0.3, 1.4), 0.055, colour, POLE)
    canvas.limb(
        frame.world(0, height + 0.25, 1.1),
        frame.world(0, height + 0.28, 1.6),
        0.1,
        (214, 206, 180),
        POLE,
    )
    canvas.glow(frame.world(0, height + 0.2, 1.4), 0.35, (255, 214, 150))


def traffic_light(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A signal on a pole, at times with a second one on an arm over the road."""
    colour, state = choose(rng, palette.metal), int(rng.integers(3))
    heads = [(3.3, 0.0)]
    canvas.limb(frame.world(0, 0, 0), frame.world(0, 3.9, 0), 0.07, colour, POLE)
    if rng.random() < 0.5:
        canvas.limb(frame.world(0, 3.9, 0), frame.world(0, 5.6, 0), 0.07, colour, POLE)
        canvas.limb(frame.world(0, 5.5, 0), frame.world(0, 5.6, 3.2), 0.06, colour, POLE)
        heads.append((5.3, 3.0))
    for up, across in heads:
        box = [
            (up - 0.55, across - 0.22),
            (up + 0.55, across - 0.22),
            (up + 0.55, across + 0.22),
            (up - 0.55, across + 0.22),
        ]
        canvas.polygon([frame.world(-0.1, u, c) for u, c in box], (30, 34, 32), LIGHT)
        for lamp, bright in enumerate(((240, 50, 40), (250, 190, 40), (50, 220, 120))):
            centre = frame.world(-0.12, up + 0.34 - 0.34 * lamp, across)
            canvas.ball(centre, 0.13, bright if lamp == state else scale(bright, 0.22), LIGHT)
            if lamp == state:
                canvas.glow(centre, 0.14, bright)


def traffic_sign(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A round, triangular, square or octagonal plate, or a direction board, on a pole."""
    up, size = rng.uniform(2.2, 2.8), rng.uniform(0.36, 0.46)
    canvas.limb(
        frame.world(0, 0, 0), frame.world(0, up + size, 0), 0.045, choose(rng, palette.metal), POLE
    )
    kind = choose(rng, ("round", "blue", "triangle", "square", "stop", "board"))
    white, red, blue = (238, 238, 234), (200, 32, 36), (36, 84, 176)

    def plate(shape: list[tuple[float, float]], factor: float, colour: RGB) -> None:
        canvas.polygon(
            [frame.world(-0.06, up + factor * u, factor * c) for c, u in shape], colour, SIGN
        )

    disc = [(size * c, size * s) for c, s in CIRCLE]
    square = [(-size, -size), (size, -size), (size, size), (-size, size)]
    shapes = {"round": (disc, red, white), "blue": (disc, blue, blue), "square": (square, blue, white),
              "triangle": ([(-size, -0.6 * size), (size, -0.6 * size), (0, 1.1 * size)], red, white),
              "stop": (disc[::2], red, red), "board": ([(2.4 * c, 1.2 * u) for c, u in square], blue, blue)}  # fmt: skip
    shape, rim, inside = shapes[kind]
    plate(shape, 1.0, rim)
    plate(shape, 0.68, inside)
    for line in (-0.3, 0.3) if kind == "board" else (0.0,):
        mark = white if inside != white else (40, 40, 44)
        width = 1.6 if kind == "board" else 0.5
        bar = [(-width * size, size * (line - 0.1)), (width * size, size * (line - 0.1)),
               (width * size, size * (line + 0.1)), (-width * size, size * (line + 0.1))]  # fmt: skip
        plate(bar, 1.0, mark)


def bin_(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A litter bin: a thing outside the 19 classes, so ignored."""
    canvas.limb(
        frame.world(0, 0.2, 0), frame.world(0, 0.8, 0), 0.24, choose(rng, palette.metal), IGNORE
    )
