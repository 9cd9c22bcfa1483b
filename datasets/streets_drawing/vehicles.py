"""The vehicles of Streets: each function paints one, in metres, on the canvas."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from .canvas import CIRCLE, RGB, Canvas, Frame, choose, scale, vary
from .looks import BICYCLE, BUS, CAR, MOTORCYCLE, RIDER, TRAIN, TRUCK, Palette
from .objects import contact_shadow, figure

Rng = np.random.Generator
Profile = tuple[tuple[float, float], ...]

RUBBER: RGB = (24, 24, 26)


@dataclass(frozen=True)
class Body:
    """A side profile (along, up) in metres, pulled out across; the front is at positive along."""

    label: int
    profile: Profile  # clockwise from the lower rear corner; the last edge is the floor
    width: float
    glass: tuple[int, ...] = ()  # edges of the profile made of glass
    windows: tuple[Profile, ...] = ()  # on each side
    wheels: tuple[float, ...] = ()
    radius: float = 0.33

    @property
    def length(self) -> float:
        """Metres from rear to front."""
        return self.profile[-1][0] - self.profile[0][0]


def _windows(start: float, end: float, count: int, low: float, high: float) -> tuple[Profile, ...]:
    """A row of rectangular windows."""
    pitch = (end - start) / count
    lefts = [start + i * pitch for i in range(count)]
    rights = [left + 0.86 * pitch for left in lefts]
    return tuple(((a, low), (a, high), (b, high), (b, low)) for a, b in zip(lefts, rights))


SEDAN = Body(
    CAR,
    profile=((-2.25, 0.3), (-2.28, 0.85), (-1.75, 0.98), (-1.1, 1.42), (0.3, 1.44), (1.05, 0.98),
             (2.1, 0.82), (2.28, 0.6), (2.25, 0.3)),
    width=1.8, glass=(2, 4), wheels=(-1.4, 1.4),
    windows=(((-1.5, 0.98), (-1.02, 1.34), (-0.42, 1.36), (-0.42, 0.98)),
             ((-0.32, 0.98), (-0.32, 1.36), (0.25, 1.36), (0.8, 0.98))),
)  # fmt: skip
HATCHBACK = Body(
    CAR,
    profile=((-1.9, 0.3), (-1.95, 0.95), (-1.6, 1.48), (0.2, 1.52), (1.0, 1.0), (1.75, 0.86),
             (1.95, 0.6), (1.9, 0.3)),
    width=1.75, glass=(1, 3), wheels=(-1.2, 1.2), radius=0.31,
    windows=(((-1.6, 1.0), (-1.45, 1.42), (-0.5, 1.44), (-0.5, 1.0)),
             ((-0.4, 1.0), (-0.4, 1.44), (0.15, 1.44), (0.75, 1.0))),
)  # fmt: skip
VAN = Body(
    CAR,
    profile=((-2.4, 0.35), (-2.42, 1.1), (-2.3, 1.95), (1.0, 2.0), (1.75, 1.2), (2.35, 1.02),
             (2.42, 0.6), (2.4, 0.35)),
    width=1.95, glass=(1, 3), wheels=(-1.5, 1.5), radius=0.35,
    windows=(((-2.1, 1.15), (-2.1, 1.75), (-0.7, 1.78), (-0.7, 1.15)),
             ((0.0, 1.15), (0.0, 1.78), (0.9, 1.8), (1.45, 1.15))),
)  # fmt: skip
CAB = Body(
    TRUCK,
    profile=((1.5, 0.5), (1.5, 2.7), (3.0, 2.75), (3.45, 1.5), (3.5, 0.5)),
    width=2.3, glass=(2,), wheels=(2.5,), radius=0.48,
    windows=(((2.0, 1.6), (2.0, 2.4), (2.9, 2.4), (3.25, 1.6)),),
)  # fmt: skip
CHASSIS = Body(TRUCK, ((-3.7, 0.5), (-3.7, 0.95), (1.6, 0.95), (1.6, 0.5)), width=2.1)
CARGO = Body(
    TRUCK,
    profile=((-3.8, 0.9), (-3.8, 3.5), (1.3, 3.5), (1.3, 0.9)),
    width=2.45, wheels=(-2.6, -1.5), radius=0.48,
)  # fmt: skip
COACH = Body(
    BUS,
    profile=((-5.5, 0.35), (-5.6, 1.5), (-5.55, 2.6), (-5.5, 3.1), (5.4, 3.15), (5.45, 2.7),
             (5.55, 1.1), (5.5, 0.35)),
    width=2.5, glass=(1, 5), wheels=(-3.2, 3.4), radius=0.48,
    windows=_windows(-5.2, 4.9, 7, 1.35, 2.65),
)  # fmt: skip
TRAM = Body(
    TRAIN,
    profile=((-11, 0.25), (-11.3, 1.3), (-11, 2.8), (-10.8, 3.4), (10.8, 3.4), (11, 2.8),
             (11.3, 1.3), (11, 0.25)),
    width=2.6, glass=(1, 5), windows=_windows(-10.4, 10.6, 12, 1.3, 2.6),
)  # fmt: skip


def paint_body(
    canvas: Canvas, frame: Frame, body: Body, colour: RGB, glass: RGB, trim: RGB | None = None
) -> None:
    """Paint the faces of a body that look at the camera, far ones first, its sides last."""
    half, faces = body.width / 2, []
    for edge, ((a0, u0), (a1, u1)) in enumerate(zip(body.profile, body.profile[1:])):
        rim = ((a0, u0, half), (a1, u1, half), (a1, u1, -half), (a0, u0, -half))
        corners = [frame.world(*corner) for corner in rim]
        length = math.hypot(a1 - a0, u1 - u0)
        outward = frame.direction((u0 - u1) / length, (a1 - a0) / length, 0)
        far = canvas.camera.locate(frame.world((a0 + a1) / 2, 0, 0))[2]
        faces.append((far, corners, glass if edge in body.glass else colour, outward))
    for _, corners, tone, outward in sorted(faces, key=lambda face: -face[0]):
        canvas.face(corners, tone, body.label, outward)
    for side in (1, -1):
        outline = [frame.world(a, u, side * half) for a, u in body.profile]
        if canvas.face(outline, colour, body.label, frame.direction(0, 0, side)):
            _paint_side(canvas, frame, body, side * (half + 0.01), glass, trim)


def _paint_side(
    canvas: Canvas, frame: Frame, body: Body, across: float, glass: RGB, trim: RGB | None
) -> None:
    rear, front = body.profile[0][0], body.profile[-1][0]
    band = ((rear, 0.6), (rear, 1.05), (front, 1.05), (front, 0.6))
    details = [(band, trim)] if trim is not None else []
    for outline, tone in details + [(window, glass) for window in body.windows]:
        canvas.polygon([frame.world(a, u, across) for a, u in outline], tone, body.label)
    for along in body.wheels:
        _wheel(canvas, frame, along, across, body.radius, body.label)


def _wheel(
    canvas: Canvas, frame: Frame, along: float, across: float, radius: float, label: int
) -> None:
    for size, colour in ((radius, RUBBER), (0.55 * radius, (120, 122, 126))):
        ring = [frame.world(along + size * c, radius + size * s, across) for c, s in CIRCLE]
        canvas.polygon(ring, colour, label)


def _lamps(
    canvas: Canvas, frame: Frame, along: float, up: float, across: float, label: int
) -> None:
    """Head lamps in front, tail lamps and a number plate behind, where the camera sees them."""
    for place, colour in ((1.01 * along, (255, 246, 214)), (-1.01 * along, (210, 26, 22))):
        outward = frame.direction(math.copysign(1, place), 0, 0)
        for side in (across, -across):
            quad = ((up, side), (up + 0.16, side), (up + 0.16, 0.62 * side), (up, 0.62 * side))
            corners = [frame.world(place, u, c) for u, c in quad]
            if canvas.face(corners, scale(colour, 1 / canvas.light(outward)), label, outward):
                canvas.glow(frame.world(place, up, side * 0.8), 0.16, colour)
    plate = ((0.5, 0.26), (0.62, 0.26), (0.62, -0.26), (0.5, -0.26))
    corners = [frame.world(-1.01 * along, u, c) for u, c in plate]
    canvas.face(corners, (226, 226, 214), label, frame.direction(-1, 0, 0))


def car(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A sedan, hatchback or van."""
    body: Body = choose(rng, (SEDAN, SEDAN, HATCHBACK, HATCHBACK, VAN))
    contact_shadow(canvas, frame, body.length, body.width)
    for along in body.wheels:
        _wheel(canvas, frame, along, 0.0, body.radius, CAR)
    paint, glass = vary(rng, choose(rng, palette.paint)), choose(rng, palette.window)
    paint_body(canvas, frame, body, paint, glass)
    _lamps(canvas, frame, body.profile[-1][0], 0.68, body.width / 2, CAR)


def truck(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A lorry with a box."""
    contact_shadow(canvas, frame, 7.0, 2.4)
    paint, glass = vary(rng, choose(rng, palette.paint)), choose(rng, palette.window)
    box, trim = vary(rng, choose(rng, palette.cargo)), scale(paint, 0.9)
    paint_body(canvas, frame, CHASSIS, (40, 40, 42), glass)
    parts = [(2.5, CAB, paint, None), (-1.2, CARGO, box, trim if rng.random() < 0.4 else None)]
    parts.sort(key=lambda part: -canvas.camera.locate(frame.world(part[0], 0, 0))[2])
    for _, body, colour, band in parts:
        paint_body(canvas, frame, body, colour, glass, band)
    seam = frame.world(-3.82, 1.0, 0), frame.world(-3.82, 3.4, 0)
    if canvas.face([*seam, frame.world(-3.82, 1.0, 0)], box, TRUCK, frame.direction(-1, 0, 0)):
        canvas.limb(*seam, 0.03, scale(box, 0.5), TRUCK)
    _lamps(canvas, frame, 3.6, 0.75, 1.1, TRUCK)


def bus(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A city bus."""
    contact_shadow(canvas, frame, COACH.length, 2.5)
    colour, glass = vary(rng, choose(rng, palette.livery)), choose(rng, palette.window)
    paint_body(canvas, frame, COACH, colour, glass, scale(colour, 0.7))
    board = ((2.75, 0.9), (3.05, 0.9), (3.05, -0.9), (2.75, -0.9))
    corners = [frame.world(5.5, u, c) for u, c in board]
    canvas.face(corners, (250, 190, 60), BUS, frame.direction(1, 0, 0))
    _lamps(canvas, frame, 5.6, 0.7, 1.2, BUS)


def tram(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A tram; Cityscapes counts it as a train."""
    contact_shadow(canvas, frame, TRAM.length, 2.6)
    colour, glass = vary(rng, choose(rng, palette.livery)), choose(rng, palette.window)
    paint_body(canvas, frame, TRAM, colour, glass, (236, 232, 222))
    for a, b in (((0, 3.5, 0), (0.9, 4.1, 0)), ((0.9, 4.1, 0), (0, 4.7, 0))):  # pantograph
        canvas.limb(frame.world(*a), frame.world(*b), 0.05, (50, 50, 52), TRAIN)
    _lamps(canvas, frame, 11.2, 0.8, 1.1, TRAIN)


def _spoked_wheel(
    canvas: Canvas, frame: Frame, along: float, radius: float, tyre: float, label: int
) -> None:
    """A thin wheel; as in Cityscapes what shows between the spokes belongs to it."""
    ring = [frame.world(along + radius * c, radius + radius * s, 0) for c, s in CIRCLE]
    canvas.polygon(ring, None, label)
    for a, b in zip(ring, ring[1:] + ring[:1]):
        canvas.limb(a, b, tyre, RUBBER, label)
    for spoke in ring[::4]:
        canvas.limb(spoke, frame.world(along, radius, 0), 0.008, (150, 150, 150), None)


def bicycle(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng, ridden: bool = False) -> None:
    """A bicycle, with its rider when it is ridden."""
    colour = vary(rng, choose(rng, palette.paint))
    contact_shadow(canvas, frame, 1.4, 0.0)
    for along in (-0.54, 0.54):
        _spoked_wheel(canvas, frame, along, 0.35, 0.03, BICYCLE)
    tubes = (
        (-0.54, 0.35, -0.08, 0.32), (-0.08, 0.32, -0.22, 0.88), (-0.54, 0.35, -0.2, 0.75),
        (-0.2, 0.78, 0.36, 0.8), (-0.08, 0.32, 0.36, 0.75), (0.34, 0.95, 0.54, 0.35),
    )  # fmt: skip
    for a0, u0, a1, u1 in tubes:
        canvas.limb(frame.world(a0, u0, 0), frame.world(a1, u1, 0), 0.032, colour, BICYCLE)
    handle, saddle = ((0.34, 1.02, 0.26), (0.34, 1.02, -0.26)), ((-0.34, 0.92, 0), (-0.12, 0.92, 0))
    for (a, b), radius in ((handle, 0.03), (saddle, 0.05)):
        canvas.limb(frame.world(*a), frame.world(*b), radius, RUBBER, BICYCLE)
    if ridden:
        figure(canvas, frame, palette, rng, RIDER, "cycle")


def motorcycle(
    canvas: Canvas, frame: Frame, palette: Palette, rng: Rng, ridden: bool = False
) -> None:
    """A motorcycle, with its rider when it is ridden."""
    colour = vary(rng, choose(rng, palette.paint))
    contact_shadow(canvas, frame, 1.8, 0.3)
    for along in (-0.68, 0.68):
        _spoked_wheel(canvas, frame, along, 0.31, 0.075, MOTORCYCLE)
    parts = (
        ((-0.68, 0.5), (0.0, 0.42), 0.12, (60, 60, 62)),  # swing arm
        ((-0.05, 0.35), (0.3, 0.45), 0.17, (84, 84, 88)),  # engine
        ((-0.85, 0.8), (-0.2, 0.74), 0.09, RUBBER),  # seat
        ((-0.9, 0.68), (-0.5, 0.62), 0.1, colour),  # tail
        ((-0.1, 0.78), (0.36, 0.84), 0.15, colour),  # tank
        ((0.42, 1.0), (0.7, 0.34), 0.06, (140, 140, 144)),  # fork
        ((0.5, 0.62), (0.66, 0.66), 0.1, colour),  # mudguard
    )
    for a, b, radius, tone in parts:
        canvas.limb(frame.world(*a, 0), frame.world(*b, 0), radius, tone, MOTORCYCLE)
    handle = frame.world(0.4, 1.02, 0.34), frame.world(0.4, 1.02, -0.34)
    canvas.limb(*handle, 0.03, RUBBER, MOTORCYCLE)
    canvas.ball(frame.world(0.55, 0.9, 0), 0.11, (250, 244, 214), MOTORCYCLE)
    if ridden:
        figure(canvas, frame, palette, rng, RIDER, "drive")
