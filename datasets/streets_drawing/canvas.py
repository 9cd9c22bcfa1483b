"""A pinhole camera over a flat world, and a canvas that paints image, label and depth together.

World: X to the right, Y up, Z along the road, metres; the camera stands at (x, eye, 0) and looks
along Z. Things are painted from far to near, so a later stroke hides an earlier one in all three
layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np

Array = np.ndarray
RGB = tuple[float, float, float]
Point = tuple[float, float, float]
Shader = Callable[[Array, Array, Array, Array], Array]

NEAR = 0.8  # metres; nothing nearer to the camera plane is painted
SUBPIXEL = 4  # bits after the point in OpenCV's fixed-point coordinates
TILE = 512  # side of the noise tile, a power of two
CIRCLE = [(math.cos(a), math.sin(a)) for a in np.linspace(0, 2 * np.pi, 16, endpoint=False)]


@lru_cache(maxsize=1)
def noise_tile() -> Array:
    """(TILE, TILE) float32 in [0, 1]: tileable 1/f noise, the same in every process."""
    rng = np.random.default_rng(7)
    frequency = np.hypot(np.fft.fftfreq(TILE)[:, None], np.fft.fftfreq(TILE)[None])
    frequency[0, 0] = 1.0
    spectrum = np.fft.fft2(rng.standard_normal((TILE, TILE))) / frequency
    spectrum[0, 0] = 0.0
    field = np.fft.ifft2(spectrum).real
    return np.clip(field / (4 * field.std()) + 0.5, 0, 1).astype(np.float32)


@lru_cache(maxsize=1)
def white_table() -> Array:
    """(4096,) float32 in [0, 1): one value for each hashed cell."""
    return np.random.default_rng(11).random(4096, dtype=np.float32)


def noise(u: Array, v: Array, size: float) -> Array:
    """Noise at plane coordinates (metres) whose finest grains measure ``size`` metres."""
    column = (u * np.float32(1 / size)).astype(np.int32) & (TILE - 1)
    row = (v * np.float32(1 / size)).astype(np.int32) & (TILE - 1)
    return noise_tile()[row, column]


def hash_cells(column: Array, row: Array, salt: int = 0) -> Array:
    """A value in [0, 1) for each integer cell."""
    mixed = column.astype(np.int64) * 73856093 ^ (row.astype(np.int64) + salt) * 19349663
    return white_table()[(mixed ^ (mixed >> 12)) & 4095]


def fade(detail: float, footprint: Array) -> Array:
    """Visibility in [0, 1] of a detail of so many metres where a pixel covers ``footprint``."""
    return np.clip(detail / footprint - 0.5, 0, 1)


@dataclass(frozen=True)
class Material:
    """A surface: its colour, its grain, and the joints of its bricks, tiles or planks."""

    colour: RGB
    grain: float = 0.12
    grain_size: float = 0.02
    pattern: str = "plain"  # plain, bricks (every other row shifted), tiles
    cell: tuple[float, float] = (1.0, 1.0)
    joint: float = 0.25  # darkening of the joints; negative: lighter than the surface
    mottle: float = 0.08  # difference between cells

    def shade(self, u: Array, v: Array, du: Array, dv: Array) -> Array:
        """Colours (..., 3) at plane coordinates (...) where a pixel covers (du, dv) metres."""
        footprint = np.maximum(du, dv)
        grain = (noise(u, v, self.grain_size) - 0.5) * fade(4 * self.grain_size, footprint)
        stains = noise(u + 9, v, 16 * self.grain_size) - 0.5
        tone = 1 + np.float32(self.grain) * (2 * grain + stains)
        if self.pattern != "plain":
            width, height = self.cell
            row = np.floor(v / height)
            across = u / width + (0.5 * row if self.pattern == "bricks" else 0)
            column = np.floor(across)
            seen = fade(width / 2, du) * fade(height / 2, dv)
            tone += seen * self.mottle * (2 * hash_cells(column, row) - 1)
            gap = 0.08 * min(width, height)
            joint = ((across - column) * width < gap) | (v - row * height < gap)
            tone -= self.joint * seen * joint
        return tone[..., None] * np.asarray(self.colour, np.float32)


class Camera:
    """Pinhole camera: sizes in pixels, ``x`` and ``eye`` in metres, ``yaw`` in radians."""

    def __init__(
        self, size: tuple[int, int], focal: float, horizon: float, eye: float, x: float, yaw: float
    ) -> None:
        self.height, self.width = size
        self.focal, self.horizon = float(focal), float(horizon)
        self.eye, self.x, self.yaw = float(eye), float(x), float(yaw)
        self.sin, self.cos = math.sin(yaw), math.cos(yaw)

    def view(self, points: Sequence[Point] | Array) -> Array:
        """World points (n, 3) -> right, up, depth (n, 3) seen from the camera."""
        p = np.asarray(points, np.float64)
        view = np.empty_like(p)
        dx = p[:, 0] - self.x
        view[:, 0] = dx * self.cos - p[:, 2] * self.sin
        view[:, 1] = p[:, 1] - self.eye
        view[:, 2] = dx * self.sin + p[:, 2] * self.cos
        return view

    def pixels(self, view: Array) -> Array:
        """View coordinates (n, 3) of positive depth -> column, row (n, 2)."""
        pixels = view[:, :2] * (self.focal / view[:, 2:])
        pixels[:, 0] += self.width / 2
        pixels[:, 1] = self.horizon - pixels[:, 1]
        return pixels

    def locate(self, point: Point) -> tuple[float, float, float]:
        """Column, row and depth of one world point; the quick way for the many small things."""
        dx = point[0] - self.x
        depth = dx * self.sin + point[2] * self.cos
        if depth < NEAR:
            return 0.0, 0.0, depth
        scale = self.focal / depth
        column = self.width / 2 + (dx * self.cos - point[2] * self.sin) * scale
        return column, self.horizon - (point[1] - self.eye) * scale, depth

    def rays(self, columns: Array, rows: Array) -> tuple[Array, Array, Array]:
        """World directions (X, Y, Z), float32, of pixels; their depth is 1."""
        inverse = np.float32(1 / self.focal)
        right = (columns.astype(np.float32) + np.float32(0.5 - self.width / 2)) * inverse
        up = (np.float32(self.horizon - 0.5) - rows.astype(np.float32)) * inverse
        sin, cos = np.float32(self.sin), np.float32(self.cos)
        return right * cos + sin, up, cos - right * sin


def clip_near(view: Array) -> Array:
    """Cut the part of a polygon (n, 3) that lies nearer than NEAR."""
    if (view[:, 2] >= NEAR).all():
        return view
    kept = []
    for start, end in zip(view, np.roll(view, -1, axis=0)):
        if start[2] >= NEAR:
            kept.append(start)
        if (start[2] >= NEAR) != (end[2] >= NEAR):
            kept.append(start + (end - start) * (NEAR - start[2]) / (end[2] - start[2]))
    return np.array(kept).reshape(-1, 3)


class Canvas:
    """Image (H, W, 3) uint8 RGB, label (H, W) uint8 and depth (H, W) float32 in metres."""

    def __init__(self, camera: Camera, sun: Point, ambient: float) -> None:
        self.camera = camera
        length = math.hypot(*sun)
        self.sun: Point = (sun[0] / length, sun[1] / length, sun[2] / length)
        self.ambient = ambient
        shape = (camera.height, camera.width)
        self.image = np.zeros((*shape, 3), np.uint8)
        self.label = np.full(shape, 255, np.uint8)
        self.depth = np.full(shape, 1e4, np.float32)
        self.glows: list[tuple[float, float, float, RGB]] = []  # x, y, radius in pixels, colour

    def light(self, normal: Sequence[float] | Array) -> float:
        """Brightness of a surface with this normal."""
        x, y, z = self.sun
        facing = normal[0] * x + normal[1] * y + normal[2] * z
        return self.ambient + (1 - self.ambient) * max(0.0, float(facing))

    def polygon(self, points: Sequence[Point], colour: RGB | None, label: int | None) -> None:
        """Fill a planar polygon given in the world; None keeps the image or the label as it is."""
        corners = [self.camera.locate(point) for point in points]
        if min(corner[2] for corner in corners) < NEAR:
            view = clip_near(self.camera.view(points))
            if len(view) < 3:
                return
            corners = np.column_stack([self.camera.pixels(view), view[:, 2]]).tolist()
        depth = sum(corner[2] for corner in corners) / len(corners)
        pixels = [fixed_point(np.array(corners)[:, :2])]
        if colour is not None:
            cv2.fillPoly(self.image, pixels, rgb(colour), shift=SUBPIXEL)
        if label is not None:
            cv2.fillPoly(self.label, pixels, label, shift=SUBPIXEL)
            cv2.fillPoly(self.depth, pixels, depth, shift=SUBPIXEL)

    def face(
        self, points: Sequence[Point], colour: RGB, label: int, outward: Point | Array
    ) -> bool:
        """Fill a face in the light of the sun unless it looks away; return whether it was seen."""
        x, y, z = points[0]
        towards = outward[0] * (self.camera.x - x) + outward[1] * (self.camera.eye - y)
        if towards <= outward[2] * z:
            return False
        self.polygon(points, scale(colour, self.light(outward)), label)
        return True

    def darken(self, points: Sequence[Point], factor: float) -> None:
        """Multiply the image inside a polygon: a shadow."""
        view = clip_near(self.camera.view(points))
        box = self._mask(self.camera.pixels(view)) if len(view) >= 3 else None
        if box is not None:
            (top, left), mask = box
            part = self.image[top : top + mask.shape[0], left : left + mask.shape[1]]
            part[mask > 0] = (part[mask > 0] * factor).astype(np.uint8)

    def limb(
        self, a: Point, b: Point, radius: float, colour: RGB | None, label: int | None
    ) -> None:
        """A round bar of ``radius`` metres between two world points."""
        x0, y0, near = self.camera.locate(a)
        x1, y1, far = self.camera.locate(b)
        if near < NEAR or far < NEAR or max(abs(x0), abs(x1), abs(y0), abs(y1)) > 30000:
            return
        depth = (near + far) / 2
        thickness = max(1, round(2 * radius * self.camera.focal / depth))
        ends = (round(x0), round(y0)), (round(x1), round(y1))
        if colour is not None:
            cv2.line(self.image, *ends, rgb(colour), thickness)
        if label is not None:
            cv2.line(self.label, *ends, label, thickness)
            cv2.line(self.depth, *ends, depth, thickness)

    def ball(self, centre: Point, radius: float, colour: RGB, label: int) -> None:
        """A disc that faces the camera."""
        x, y, depth = self.camera.locate(centre)
        size = round(radius * self.camera.focal / max(depth, NEAR))
        inside = -size <= x <= self.camera.width + size and -size <= y <= self.camera.height + size
        if depth >= NEAR and inside:
            at = (round(x), round(y))
            cv2.circle(self.image, at, size, rgb(colour), -1)
            cv2.circle(self.label, at, size, label, -1)
            cv2.circle(self.depth, at, size, depth, -1)

    def blobs(self, centres: Array, radii: Array, colours: Array, label: int) -> None:
        """Many discs (n, 3), (n,), (n, 3) of one thing, in the order given."""
        view = self.camera.view(centres)
        if (view[:, 2] < NEAR).any():
            return
        depth = float(view[:, 2].mean())
        places = np.round(self.camera.pixels(view)).astype(int)
        sizes = np.maximum(1, np.round(radii * self.camera.focal / view[:, 2])).astype(int)
        low, high = (places - sizes[:, None]).min(0), (places + sizes[:, None]).max(0)
        if (high < 0).any() or (low > [self.camera.width, self.camera.height]).any():
            return
        tones = np.clip(colours, 0, 255).astype(int).tolist()
        for at, size, tone in zip(places.tolist(), sizes.tolist(), tones):
            cv2.circle(self.image, at, size, tone, -1)
            cv2.circle(self.label, at, size, label, -1)
            cv2.circle(self.depth, at, size, depth, -1)

    def glow(self, centre: Point, radius: float, colour: RGB) -> None:
        """Remember a light source; the weather decides how much of it shines."""
        x, y, depth = self.camera.locate(centre)
        if depth >= NEAR:
            self.glows.append((x, y, radius * self.camera.focal / depth, colour))

    def surface(
        self,
        corners: Sequence[Point],
        axis: int,
        shader: Shader,
        label: int,
        brightness: float = 1.0,
    ) -> None:
        """Paint a vertical polygon in the plane X = const (axis 0) or Z = const (axis 2).

        The shader gives the colours (H, W, 3) of a rectangle of pixels from the coordinate along
        the ground (1, W), the height (H, W), and the metres a pixel covers along each (1, W).
        """
        view = clip_near(self.camera.view(corners))
        box = self._mask(self.camera.pixels(view)) if len(view) >= 3 else None
        if box is None:
            return
        (top, left), mask = box
        bottom, right = top + mask.shape[0], left + mask.shape[1]
        rows, columns = np.arange(top, bottom)[:, None], np.arange(left, right)[None]
        x, y, z = self.camera.rays(columns, rows)  # x and z depend on the column alone
        if axis == 0:
            distance = np.float32(corners[0][0] - self.camera.x)
            depth = np.clip(distance / np.where(np.abs(x) < 1e-4, 1e-4, x), NEAR, 500)
            along, slant = depth * z, depth / np.abs(distance)
        else:
            depth = np.float32(corners[0][2]) / z
            along, slant = np.float32(self.camera.x) + depth * x, np.float32(1.0)
        dv = depth * np.float32(1 / self.camera.focal)
        colour = shader(along, np.float32(self.camera.eye) + depth * y, dv * slant, dv)
        colour = np.clip(colour * np.float32(brightness), 0, 255).astype(np.uint8)
        inside = mask.astype(bool)
        np.copyto(self.image[top:bottom, left:right], colour, where=inside[..., None])
        np.copyto(self.depth[top:bottom, left:right], depth, where=inside)
        self.label[top:bottom, left:right][inside] = label

    def _mask(self, pixels: Array) -> tuple[tuple[int, int], Array] | None:
        """Top-left corner and 0/1 mask of the part of a polygon that is inside the image."""
        low = np.maximum(np.floor(pixels.min(0)), 0).astype(int)
        high = np.minimum(
            np.ceil(pixels.max(0)) + 1, [self.camera.width, self.camera.height]
        ).astype(int)
        if (high <= low).any():
            return None
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        cv2.fillPoly(mask, [fixed_point(pixels - low)], 1, shift=SUBPIXEL)
        return (int(low[1]), int(low[0])), mask


def fixed_point(pixels: Array) -> Array:
    """Pixel coordinates as OpenCV takes them with ``shift=SUBPIXEL``."""
    return np.rint(pixels * (1 << SUBPIXEL)).clip(-(1 << 20), 1 << 20).astype(np.int32)


def rgb(colour: RGB) -> tuple[int, int, int]:
    """A colour as OpenCV takes it, clipped to [0, 255]."""
    r, g, b = colour
    return min(255, max(0, int(r))), min(255, max(0, int(g))), min(255, max(0, int(b)))


def scale(colour: RGB, factor: float) -> RGB:
    """A darker or lighter colour."""
    return colour[0] * factor, colour[1] * factor, colour[2] * factor


def vary(rng: np.random.Generator, colour: RGB, amount: float = 0.08) -> RGB:
    """The colour of one instance: a little lighter or darker, warmer or colder."""
    tone = 1 + amount * rng.uniform(-1.5, 1.5)
    r, g, b = (c * (tone + amount * rng.uniform(-0.5, 0.5)) for c in colour)
    return r, g, b


def choose(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    """One of the options, all as likely."""
    return options[int(rng.integers(len(options)))]


class Frame:
    """The local axes of a thing on the ground, in metres.

    Along: towards its front; up; across: towards its left. Heading 0 looks along Z, pi/2 along X.
    """

    def __init__(self, x: float, z: float, heading: float = 0.0) -> None:
        self.x, self.z = float(x), float(z)
        self.sin, self.cos = math.sin(heading), math.cos(heading)

    def world(self, along: float, up: float, across: float) -> Point:
        """A local point in the world."""
        x = self.x + along * self.sin - across * self.cos
        return x, up, self.z + along * self.cos + across * self.sin

    def direction(self, along: float, up: float, across: float) -> Point:
        """A local direction in the world."""
        x = along * self.sin - across * self.cos
        return x, up, along * self.cos + across * self.sin
