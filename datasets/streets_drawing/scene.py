"""Lays out a street and paints it: sky, ground, what lines it, then all between, far to near.

Image i of a domain depends on (seed, domain, i, size) alone. Each image features one rare thing in
turn, so that a short run of images holds all 19 classes.
"""

from __future__ import annotations

import cv2
import numpy as np

from .borders import HEIGHTS, Section, Side, border_items
from .canvas import RGB, Array, Camera, Canvas, Point, choose, noise
from .looks import IGNORE, LOOKS, ROAD, SIDEWALK, SKY, TERRAIN, Palette, Rig
from .traffic import LANE, Street, Traffic
from .weather import expose, paint_sky, sense

Rng = np.random.Generator

SUPERSAMPLING = 1.5
FEATURES = ("tram", "bus", "truck", "motorcycle", "motorcyclist", "cyclist", "wall", "fence")
FAR = 120.0  # metres; the end of the street
DISTRICTS = (  # how often each kind of border occurs, in the order of HEIGHTS
    (8, 0.5, 0.5, 0.5, 0.5),  # centre
    (5, 1, 1, 1, 1.5),
    (2, 1.5, 1.5, 1.5, 2.5),  # outskirts
)


def plan_street(rng: Rng, feature: str) -> Street:
    """Draw the widths, the borders and the crossing of a street."""
    lanes, parking = int(rng.integers(1, 3)), bool(rng.random() < 0.6)
    crossing = float(rng.uniform(20, 42)) if rng.random() < 0.5 else None
    sides = (_plan_side(-1, lanes, parking, rng), _plan_side(1, lanes, parking, rng))
    street = Street(lanes, parking, sides, crossing, feature)
    featured = choose(rng, sides)
    for side in sides:
        _plan_border(street, side, rng, feature if side is featured else "")
    return street


def _plan_side(sign: int, lanes: int, parking: bool, rng: Rng) -> Side:
    curb = lanes * LANE + (2.2 if parking else 0.4)
    inner = curb + (rng.uniform(1.0, 2.5) if rng.random() < 0.4 else 0.25)
    outer = inner + rng.uniform(2.0, 4.0)
    garden = rng.uniform(1.5, 5.0) if rng.random() < 0.35 else 0.0
    return Side(sign, curb, (inner, outer), outer + garden)


def _plan_border(street: Street, side: Side, rng: Rng, feature: str) -> None:
    """Sections from near to far; a featured wall or fence stands where the camera first looks."""
    weights = np.array(choose(rng, DISTRICTS))
    z, promised = rng.uniform(0, 4), feature in HEIGHTS
    while z < FAR:
        kind = str(rng.choice(list(HEIGHTS), p=weights / weights.sum()))
        end = z + rng.uniform(8, 20)
        if promised and end > 1.6 * side.border:
            kind, end, promised = feature, z + rng.uniform(14, 22), False
        after = end
        if street.crossing is not None and street.crosses(z, end):
            end, after = street.crossing - 5, street.crossing + 5
        if end - z > 4:
            side.sections.append(Section(kind, z, end, rng.uniform(*HEIGHTS[kind])))
        z = after + (rng.uniform(0, 3) if kind == "building" and rng.random() < 0.3 else 0)


def paint_ground(canvas: Canvas, street: Street, palette: Palette, shadow: float, rng: Rng) -> None:
    """Road with markings, curbs, sidewalks, verges and yards, and the shadows of the houses."""
    camera = canvas.camera
    top = max(0, int(np.ceil(camera.horizon + 1)))
    rows, columns = np.mgrid[top : camera.height, 0 : camera.width].reshape(2, -1)
    dx, dy, dz = camera.rays(columns, rows)
    depth = -np.float32(camera.eye) / dy
    x, z = np.float32(camera.x) + depth * dx, depth * dz
    across = depth * np.float32(1 / camera.focal)
    along = across * depth * np.float32(1 / camera.eye)
    yard = choose(rng, (*palette.terrain, palette.terrain[0], palette.sidewalk[2]))
    zones = (  # material, label
        (choose(rng, palette.road), ROAD),
        (choose(rng, palette.sidewalk), SIDEWALK),
        (choose(rng, palette.terrain), TERRAIN),
        (yard, SIDEWALK if yard in palette.sidewalk else TERRAIN),
        (palette.sidewalk[0], SIDEWALK),
    )
    zone = _zones(x, z, street)
    colour, label = np.empty((x.size, 3), np.float32), np.empty(x.size, np.uint8)
    for number, (material, name) in enumerate(zones):
        here = np.flatnonzero(zone == number)
        colour[here] = material.shade(x[here], z[here], across[here], along[here])
        label[here] = name
    road = np.flatnonzero(zone == 0)
    colour[road] = _mark(colour[road], x[road], z[road], along[road], street, palette.marking, rng)
    colour[_shaded(x, z, street, canvas.sun)] *= np.float32(shadow)
    shape = (camera.height - top, camera.width)
    canvas.image[top:] = np.clip(colour, 0, 255).reshape(*shape, 3)
    canvas.label[top:] = label.reshape(shape)
    canvas.depth[top:] = depth.reshape(shape)


def _zones(x: Array, z: Array, street: Street) -> Array:
    """Zone of each ground point: 0 road, 1 sidewalk, 2 verge or garden, 3 yard, 4 curb."""
    left, right = ((s.curb, s.curb + 0.25, *s.walk, s.border) for s in street.sides)
    edges = np.array([-e for e in reversed(left)] + list(right), np.float32)
    kinds = np.array([3, 2, 1, 2, 4, 0, 4, 2, 1, 2, 3], np.uint8)
    zone = kinds[np.searchsorted(edges, x)]
    if street.crossing is not None:
        zone[np.abs(z - np.float32(street.crossing)) < 3.6] = 0
    return zone


def _mark(
    colour: Array, x: Array, z: Array, along: Array, street: Street, paint: RGB, rng: Rng
) -> Array:
    """Paint lines between lanes, zebra and stop line at a crossing, and tram rails on the road."""
    dashed = (z % 6.0) < 3.0
    outer = LANE * street.lanes
    marked = (np.abs(x) < 0.08) & (dashed | (rng.random() < 0.3))
    if street.lanes > 1:
        marked |= (np.abs(np.abs(x) - LANE) < 0.08) & dashed
    if street.parking:
        marked |= np.abs(np.abs(x) - outer) < 0.08
    if street.crossing is not None:
        ahead = z - np.float32(street.crossing)
        marked &= np.abs(ahead) > 4.2
        marked |= (np.abs(np.abs(ahead) - 5.6) < 1.3) & ((x % 1.1) < 0.55)
        marked |= (np.abs(ahead + 8) < 0.2) & (x > 0)
        marked &= np.abs(x) < street.curb
    spots = np.flatnonzero(marked)
    wear = 1.4 - noise(x[spots], z[spots], 0.03) * np.float32(rng.uniform(0.3, 1.2))
    blend = np.clip(wear, 0, 1) * np.clip(1.2 - along[spots] / 6, 0.15, 0.95)
    colour[spots] += (np.float32(paint) - colour[spots]) * blend[:, None]
    if street.feature == "tram":
        colour[np.abs(np.abs(x + LANE / 2) - 0.72) < 0.06] *= 0.55
    return colour


def _shaded(x: Array, z: Array, street: Street, sun: Point) -> Array:
    """Indices of ground points that the border on the sunny side hides from the sun."""
    side = street.sides[1 if sun[0] > 0 else 0]
    reach = np.zeros(int(FAR) + 60, np.float32)
    for section in side.sections:
        reach[int(section.start) : int(section.end)] = section.height
    reach *= abs(sun[0]) / max(sun[1], 0.1)
    cast = reach[np.clip(z, 0, len(reach) - 1).astype(np.int32)]
    return np.flatnonzero((x * side.sign > side.border - cast) & (cast > 0))


def _set_camera(rig: Rig, street: Street, size: tuple[int, int], rng: Rng) -> Camera:
    """A camera in one of the lanes on the right."""
    x = (int(rng.integers(street.lanes)) + 0.5) * LANE + rng.normal(scale=0.25)
    focal, horizon = rng.uniform(*rig.focal) * size[1], rng.uniform(*rig.horizon) * size[0]
    yaw = float(np.clip(rng.normal(scale=rig.yaw / 2), -rig.yaw, rig.yaw))
    return Camera(size, focal, horizon, rng.uniform(*rig.eye), x, yaw)


def _bonnet(image: Array, label: Array, rng: Rng) -> None:
    """The own car's bonnet at the lower edge, ignored as in Cityscapes."""
    height, width = label.shape
    centre, axes = (width // 2, int(height * 1.13)), (int(width * 0.46), int(height * 0.21))
    mask = cv2.ellipse(np.zeros_like(label), centre, axes, 0, 0, 360, 1, -1) > 0
    rows = np.linspace(0, 1, height)[:, None, None]
    tone = np.interp(rows, (0.9, 1.0), (70, 26)) * rng.uniform(0.7, 1.1)
    image[mask] = np.broadcast_to(tone, image.shape)[mask]
    label[mask] = IGNORE


def render(domain: str, seed: int, index: int, height: int, width: int) -> tuple[Array, Array]:
    """Image ``index`` of a domain: RGB (H, W, 3) uint8 and train ids (H, W) uint8, 255 = ignore.

    ``domain`` is source, target or val; target and val share their look and differ in their draws.
    Target has labels here, for an oracle to be measured; they are never written to disk.
    """
    if domain not in LOOKS:
        raise ValueError(f"domain={domain!r}, expected one of {', '.join(LOOKS)}")
    look, rng = LOOKS[domain], np.random.default_rng([seed, list(LOOKS).index(domain), index])
    weather = choose(rng, look.weathers)
    street = plan_street(rng, FEATURES[index % len(FEATURES)])
    fine = (round(SUPERSAMPLING * height), round(SUPERSAMPLING * width))
    camera = _set_camera(look.rig, street, fine, rng)
    canvas = Canvas(camera, weather.sun, weather.ambient)
    paint_sky(canvas, weather, rng, SKY)
    paint_ground(canvas, street, look.palette, weather.shadow, rng)
    lining = border_items(street.sides, look.palette, FAR, rng)
    for items in (lining, Traffic(street, camera, look.palette, look.rig, rng).fill()):
        for _, paint in sorted(items, key=lambda item: -item[0]):
            paint(canvas)
    image = expose(canvas, (height, width), weather, rng)
    label = cv2.resize(canvas.label, (width, height), interpolation=cv2.INTER_NEAREST)
    if look.rig.bonnet:
        _bonnet(image, label, rng)
    return sense(image, weather, look.sensor, rng), label
