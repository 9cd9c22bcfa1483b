"""From the painted scene to the picture: sky, haze, lamps, the colour of the light, the sensor."""

from __future__ import annotations

import cv2
import numpy as np

from .canvas import TILE, Array, Canvas, noise_tile
from .looks import Sensor, Weather

Rng = np.random.Generator
SKY_DEPTH = 9e3  # metres; what is farther is sky


def paint_sky(canvas: Canvas, weather: Weather, rng: Rng, label: int) -> None:
    """Sky down to the horizon: a gradient, and clouds that recede."""
    camera, stride = canvas.camera, 2
    bottom = min(camera.height, int(camera.horizon) + 2)
    rows = np.arange(0, bottom, stride, dtype=np.float32)
    columns = np.arange(0, camera.width, stride, dtype=np.float32)
    up = np.maximum((camera.horizon - rows) / camera.focal, 0.004)[:, None]
    right = (columns - camera.width / 2)[None] / np.float32(camera.focal)
    blend = np.minimum(up * 2.4, 1)[..., None] ** 0.7
    zenith, skyline, cloud = np.float32([weather.zenith, weather.skyline, weather.cloud])
    sky = skyline + (zenith - skyline) * blend
    far = 1 / (up + 0.15)
    u = (right * far * 16 + np.float32(rng.uniform(0, TILE))) % TILE
    v = np.broadcast_to((far * 22 + np.float32(rng.uniform(0, TILE))) % TILE, u.shape).copy()
    field = cv2.remap(noise_tile(), u, v, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    density = np.clip((field - 0.78 + 0.56 * weather.cover) * 4, 0, 0.95)
    density = (density * np.clip(up * 9, 0.1, 1))[..., None]
    sky = sky + (cloud - sky) * density
    size = (camera.width, bottom)
    canvas.image[:bottom] = cv2.resize(np.clip(sky, 0, 255).astype(np.uint8), size)
    canvas.label[:bottom] = label


def expose(canvas: Canvas, size: tuple[int, int], weather: Weather, rng: Rng) -> Array:
    """The scene through the air, scaled down to ``size`` (H, W): float RGB in [0, 255]."""
    height, width = size
    image = cv2.resize(canvas.image, (width, height), interpolation=cv2.INTER_AREA)
    depth = cv2.resize(canvas.depth, (width, height), interpolation=cv2.INTER_NEAREST)[..., None]
    image = image.astype(np.float32)
    light, skyline = np.float32(weather.tint), np.float32(weather.skyline)
    sky = depth > SKY_DEPTH
    image = np.where(sky, image, image * light)
    if weather.fog:
        seen = np.exp(-weather.fog * rng.uniform(0.7, 1.4) * np.minimum(depth, 400))
        seen = np.where(sky, np.maximum(seen, 0.6), seen)
        image = image * seen + skyline * light * (1 - seen)
    grey = image.mean(2, keepdims=True)
    image = np.clip(grey + weather.saturation * (image - grey), 0, 255)
    if weather.glow and canvas.glows:
        image = np.minimum(image + weather.glow * _halos(canvas, size), 255)
    return 255 * (image / 255) ** np.float32(weather.gamma * rng.uniform(0.9, 1.1))


def _halos(canvas: Canvas, size: tuple[int, int]) -> Array:
    """Light around the lamps, painted small and blurred wide."""
    shrink = 4
    height, width = canvas.camera.height // shrink, canvas.camera.width // shrink
    layer = np.zeros((height, width, 3), np.float32)
    for x, y, radius, colour in canvas.glows:
        if 0 <= x < canvas.camera.width and 0 <= y < canvas.camera.height:
            at = (int(x / shrink), int(y / shrink))
            cv2.circle(layer, at, max(1, round(radius / shrink)), colour, -1)
    wide = 3 * cv2.GaussianBlur(layer, (0, 0), width / 60) + cv2.GaussianBlur(layer, (0, 0), 1)
    return cv2.resize(np.minimum(wide, 255), (size[1], size[0]))


def sense(image: Array, weather: Weather, sensor: Sensor, rng: Rng) -> Array:
    """Rain, vignette, blur, noise and compression of a camera: float RGB (H, W, 3) -> uint8."""
    height, width = image.shape[:2]
    if weather.rain:
        image = image + _rain(height, width, weather.rain, rng)
    if sensor.vignette:
        y = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
        x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
        image = image * (1 - np.float32(rng.uniform(0, sensor.vignette)) * (x * x + y * y) / 2)
    blur = rng.uniform(*sensor.blur) * width
    if blur > 0.2:
        sideways = rng.uniform(0.6, 1.6)
        image = cv2.GaussianBlur(image, (0, 0), sigmaX=blur * sideways, sigmaY=blur)
    level = np.float32(rng.uniform(*sensor.noise))
    if level:
        grain = rng.standard_normal((height, width, 4), dtype=np.float32)
        image = image + level * (grain[..., :3] + 0.6 * grain[..., 3:]) * (0.6 + image / 400)
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    if sensor.quality:
        options = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(*sensor.quality))]
        code = cv2.imencode(".jpg", cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), options)[1]
        pixels = cv2.cvtColor(cv2.imdecode(code, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
    return pixels


def _rain(height: int, width: int, density: float, rng: Rng) -> Array:
    """Streaks of rain (H, W, 1), to be added."""
    layer = np.zeros((height, width), np.float32)
    slope = rng.uniform(-0.25, 0.25)
    for _ in range(int(density * width)):
        x, y = rng.uniform(0, width), rng.uniform(-20, height)
        length = rng.uniform(0.03, 0.12) * height
        end = (int(x + slope * length), int(y + length))
        cv2.line(layer, (int(x), int(y)), end, rng.uniform(15, 55), 1, cv2.LINE_AA)
    return cv2.GaussianBlur(layer, (0, 0), 0.6)[..., None]
