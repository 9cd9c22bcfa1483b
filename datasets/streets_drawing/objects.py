"""People, trees and street furniture of Streets: each function paints one, in metres."""

from __future__ import annotations

import math

import numpy as np

from .canvas import CIRCLE, RGB, Array, Canvas, Frame, Point, choose, scale, vary
from .looks import IGNORE, LIGHT, PERSON, POLE, RIDER, SIGN, VEGETATION, Palette

Rng = np.random.Generator
Joint = tuple[float, float]

HAIR: tuple[RGB, ...] = ((40, 30, 26), (92, 66, 44), (180, 150, 96), (150, 148, 146))
POSES: dict[str, tuple[Joint, ...]] = {  # along, up in metres at a height of 1.75:
    # hip, neck, head, two knees, two feet, two hands
    "walk": ((0.0, 0.92), (0.04, 1.45), (0.06, 1.63), (0.2, 0.5), (-0.05, 0.5),
             (0.28, 0.06), (-0.34, 0.1), (0.25, 0.85), (-0.22, 0.85)),
    "stand": ((0.0, 0.92), (0.0, 1.45), (0.02, 1.63), (0.02, 0.5), (0.0, 0.5),
              (0.03, 0.05), (0.0, 0.05), (0.06, 0.82), (0.22, 1.1)),
    "cycle": ((-0.22, 1.0), (0.16, 1.5), (0.26, 1.68), (0.2, 0.82), (0.1, 0.62),
              (0.08, 0.45), (-0.04, 0.18), (0.48, 1.05), (0.48, 1.05)),
    "drive": ((-0.25, 0.86), (0.0, 1.38), (0.06, 1.57), (0.22, 0.78), (0.22, 0.78),
              (0.02, 0.32), (0.02, 0.32), (0.5, 1.0), (0.5, 1.0)),
}  # fmt: skip


def contact_shadow(canvas: Canvas, frame: Frame, length: float, width: float) -> None:
    """The dark ground under a thing."""
    a, c = length / 2 + 0.15, width / 2 + 0.2
    canvas.darken([frame.world(p, 0.0, q) for p, q in ((-a, c), (a, c), (a, -c), (-a, -c))], 0.45)


def figure(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng, label: int, pose: str) -> None:
    """A human being: limbs, clothes, and hair or a helmet."""
    child = label == PERSON and rng.random() < 0.12
    size = rng.uniform(0.65, 0.8) if child else rng.uniform(0.95, 1.08)
    hip, neck, head, *rest = POSES[pose]
    knees, feet, hands = rest[:2], rest[2:4], rest[4:]
    top, skin = vary(rng, choose(rng, palette.cloth)), choose(rng, palette.skin)
    legs = vary(rng, scale(choose(rng, palette.cloth), 0.75))
    build = size * rng.uniform(0.9, 1.15)

    def at(joint: Joint, across: float, lift: float = 0.0) -> Point:
        return frame.world(size * joint[0], size * (joint[1] + lift), size * across)

    def bar(a: Point, b: Point, radius: float, colour: RGB) -> None:
        canvas.limb(a, b, build * radius, colour, label)

    for side, knee, foot in zip((0.1, -0.1), knees, feet):
        tone = legs if side > 0 else scale(legs, 0.82)
        bar(at(hip, side), at(knee, side), 0.095, tone)
        bar(at(knee, side), at(foot, side), 0.07, tone)
        bar(at(foot, side), at((foot[0] + 0.1, foot[1]), side), 0.055, scale(tone, 0.4))
    bar(at(neck, -0.2, -0.08), at(hands[1], -0.26), 0.055, scale(top, 0.8))
    for across in (-0.1, 0.1, 0.0):
        bar(at(neck, across, -0.1), at(hip, 0.8 * across), 0.125, top)
    if pose in ("walk", "stand") and rng.random() < 0.3:  # a coat
        for across in (-0.06, 0.06):
            bar(at(neck, across, -0.1), at(hip, across, -0.3), 0.15, top)
    bar(at(neck, 0.2, -0.08), at(hands[0], 0.26), 0.055, scale(top, 0.9))
    bar(at(neck, 0), at(head, 0), 0.06, skin)
    canvas.ball(at(head, 0), size * 0.115, skin, label)
    crown = vary(rng, choose(rng, palette.paint if label == RIDER else HAIR), 0.15)
    place = at((head[0] - 0.03, head[1] + 0.06), 0)
    canvas.ball(place, size * (0.15 if pose == "drive" else 0.105), crown, label)


def person(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A pedestrian."""
    contact_shadow(canvas, frame, 0.1, 0.1)
    figure(canvas, frame, palette, rng, PERSON, "walk" if rng.random() < 0.7 else "stand")


def bush(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A shrub as high as a man's hip or chest."""
    reach = np.array([1.1, 0.6, 1.0]) * rng.uniform(0.7, 1.3)
    leaf = vary(rng, choose(rng, palette.leaf))
    _crown(canvas, frame, rng, leaf, np.array([0, 0.9 * reach[1], 0]), reach)


def tree(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A round tree, a conifer, or a tree without leaves."""
    height, bark = rng.uniform(4.5, 9.0), vary(rng, (86, 68, 54))
    contact_shadow(canvas, frame, 0.4, 0.4)
    fork = height * rng.uniform(0.3, 0.42)
    trunk = frame.world(0, 0, 0), frame.world(0, fork * 1.2, 0)
    canvas.limb(*trunk, 0.02 * height + 0.04, bark, VEGETATION)
    if rng.random() < palette.bare_trees:
        depth = max(canvas.camera.locate(frame.world(0, 0, 0))[2], 1.0)
        levels = int(np.clip(5.5 - depth / 16, 2, 4))
        crotch, upwards = frame.world(0, fork, 0), np.array([0, 1.0, 0])
        _branch(canvas, crotch, upwards, height * 0.3, bark, rng, levels)
        return
    leaf = vary(rng, choose(rng, palette.leaf))
    if rng.random() < 0.3:  # conifer
        for level in np.linspace(0, 1, 6):
            reach = height * np.array([0.28 - 0.26 * level, 0.1, 0.28 - 0.26 * level])
            centre = height * np.array([0, 0.18 + 0.78 * level, 0])
            _crown(canvas, frame, rng, leaf, centre, reach, 0.35)
        return
    reach = height * np.array([rng.uniform(0.24, 0.34), 0.32, rng.uniform(0.24, 0.34)])
    _crown(canvas, frame, rng, leaf, height * np.array([0, 0.66, 0]), reach)


def _crown(
    canvas: Canvas, frame: Frame, rng: Rng, leaf: RGB, centre: Array, reach: Array, share: float = 1
) -> None:
    """A cloud of leaf blobs, dark below and bright above; the nearer, the more and the finer."""
    distance = max(canvas.camera.locate(frame.world(0, 0, 0))[2], 1.0)
    pixels = float(reach.max()) * canvas.camera.focal / distance
    count = int(np.clip(share * pixels * 1.6, 12, share * 240))
    offsets = rng.normal(size=(count, 3))
    offsets *= rng.random((count, 1)) ** 0.5 / np.linalg.norm(offsets, axis=1, keepdims=True)
    offsets = offsets[np.argsort(offsets[:, 1] + 0.5 * rng.random(count))]
    shine = 0.25 * canvas.light((0, 1, 0)) * rng.random(count)
    tones = 0.58 + 0.17 * (offsets[:, 1] + 1) + shine
    radii = reach.mean() * rng.uniform(0.7, 1.3, count) * 2.0 / np.sqrt(count / share)
    centres = np.array([frame.x, 0, frame.z]) + centre + offsets * reach
    canvas.blobs(centres, radii, tones[:, None] * np.asarray(leaf), VEGETATION)


def _branch(
    canvas: Canvas, start: Point, way: Array, length: float, bark: RGB, rng: Rng, level: int
) -> None:
    """A branch and its twigs. The label is wider than the twigs: the crown counts, not the air."""
    x, y, z = (np.asarray(start) + way * length).tolist()
    canvas.limb(start, (x, y, z), 0.05 * length + 0.03, None, VEGETATION)
    canvas.limb(start, (x, y, z), 0.022 * length + 0.006, bark, None)
    for _ in range(3 if level else 0):
        turn = way + rng.normal(scale=0.55, size=3) * np.array([1, 0.6, 1])
        turn /= math.hypot(*turn)
        _branch(canvas, (x, y, z), turn, length * rng.uniform(0.6, 0.8), bark, rng, level - 1)


def street_lamp(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A lamp whose arm reaches over the road, towards positive across."""
    colour, height = choose(rng, palette.metal), rng.uniform(6, 8)
    top, tip = frame.world(0, height, 0), frame.world(0, height + 0.3, 1.4)
    canvas.limb(frame.world(0, 0, 0), top, 0.085, colour, POLE)
    canvas.limb(top, tip, 0.055, colour, POLE)
    canvas.limb(frame.world(0, height + 0.27, 1.1), tip, 0.1, (214, 206, 180), POLE)
    canvas.glow(tip, 0.35, (255, 214, 150))


def traffic_light(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A signal on a pole, at times with a second one on an arm over the road."""
    colour, state = choose(rng, palette.metal), int(rng.integers(3))
    heads = [(3.3, 0.0)]
    bars = [((0, 0), (3.9, 0))]
    if rng.random() < 0.5:
        bars += [((3.9, 0), (5.6, 0)), ((5.5, 0), (5.6, 3.2))]
        heads.append((5.3, 3.0))
    for (u0, c0), (u1, c1) in bars:
        canvas.limb(frame.world(0, u0, c0), frame.world(0, u1, c1), 0.07, colour, POLE)
    for up, across in heads:
        box = ((-0.55, -0.22), (0.55, -0.22), (0.55, 0.22), (-0.55, 0.22))
        canvas.polygon([frame.world(0, up + u, across + c) for u, c in box], (30, 34, 32), LIGHT)
        for lamp, bright in enumerate(((240, 50, 40), (250, 190, 40), (50, 220, 120))):
            centre = frame.world(0, up + 0.34 - 0.34 * lamp, across)
            canvas.ball(centre, 0.13, bright if lamp == state else scale(bright, 0.22), LIGHT)
            if lamp == state:
                canvas.glow(centre, 0.14, bright)


WHITE, RED, BLUE, BLACK = (238, 238, 234), (200, 32, 36), (36, 84, 176), (40, 40, 44)
SQUARE = [(-1.0, -1.0), (1.0, -1.0), (1.0, 1.0), (-1.0, 1.0)]
PLATES = {  # outline (across, up), rim, inside, mark, number of bars
    "round": (CIRCLE, RED, WHITE, BLACK, 1),
    "blue": (CIRCLE, BLUE, BLUE, WHITE, 1),
    "triangle": ([(-1.0, -0.6), (1.0, -0.6), (0.0, 1.1)], RED, WHITE, BLACK, 1),
    "square": (SQUARE, BLUE, WHITE, BLACK, 1),
    "stop": (CIRCLE[::2], RED, RED, WHITE, 1),
    "board": ([(2.4 * c, 1.2 * u) for c, u in SQUARE], BLUE, BLUE, WHITE, 2),
}


def traffic_sign(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A round, triangular, square or octagonal plate, or a direction board, on a pole."""
    up, size = rng.uniform(2.2, 2.8), rng.uniform(0.36, 0.46)
    top = frame.world(0, up + size, 0)
    canvas.limb(frame.world(0, 0, 0), top, 0.045, choose(rng, palette.metal), POLE)
    shape, rim, inside, mark, bars = PLATES[choose(rng, tuple(PLATES))]
    half = 0.5 if bars == 1 else 1.6
    layers = [(rim, shape), (inside, [(0.68 * c, 0.68 * u) for c, u in shape])]
    for middle in (0.0,) if bars == 1 else (-0.3, 0.3):
        layers.append((mark, [(half * c, middle + 0.12 * u) for c, u in SQUARE]))
    for colour, outline in layers:
        corners = [frame.world(0, up + size * u, size * c) for c, u in outline]
        canvas.polygon(corners, colour, SIGN)


def litter_bin(canvas: Canvas, frame: Frame, palette: Palette, rng: Rng) -> None:
    """A thing outside the 19 classes, so ignored."""
    ends = frame.world(0, 0.25, 0), frame.world(0, 0.8, 0)
    canvas.limb(*ends, 0.24, choose(rng, palette.metal), IGNORE)
