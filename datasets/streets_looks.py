"""What tells the two domains of Streets apart: materials, sky, weather and the camera's sensor.

``source`` looks like a game (clean, saturated, crisp shadows), ``target`` like a dash camera in autumn (worn materials, low or
no sun, haze, rain, noise). Every class has several modes in both, so that one prototype does not describe it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from streets_canvas import RGB, TILE, Array, Canvas, Material, Point, noise_tile


@dataclass(frozen=True)
class Palette:
    """The modes of every class; the scene draws one for each thing."""

    road: tuple[Material, ...]
    sidewalk: tuple[Material, ...]
    terrain: tuple[Material, ...]
    wall: tuple[Material, ...]
    facade: tuple[Material, ...]
    roof: tuple[RGB, ...]
    window: tuple[RGB, ...]
    fence: tuple[RGB, ...]
    metal: tuple[RGB, ...]
    leaf: tuple[RGB, ...]
    paint: tuple[RGB, ...]
    cargo: tuple[RGB, ...]
    livery: tuple[RGB, ...]
    cloth: tuple[RGB, ...]
    skin: tuple[RGB, ...]
    marking: RGB
    bare_trees: float  # fraction of trees without leaves


@dataclass(frozen=True)
class Weather:
    """Light between the sun and the sensor. Densities are per metre, colours 0 to 255."""

    zenith: RGB
    skyline: RGB
    cloud: RGB
    cover: float  # fraction of the sky under clouds
    sun: Point
    ambient: float
    shadow: float  # brightness inside a cast shadow
    tint: RGB = (1.0, 1.0, 1.0)
    gamma: float = 1.0
    saturation: float = 1.0
    fog: float = 0.0
    rain: float = 0.0  # streaks per pixel column
    glow: float = 0.0  # strength of lamps and lit windows


@dataclass(frozen=True)
class Sensor:
    """What the camera adds. Sizes are fractions of the image width."""

    blur: tuple[float, float] = (0.0, 0.0)
    noise: tuple[float, float] = (0.0, 0.0)  # grey levels
    quality: tuple[int, int] | None = None  # JPEG
    vignette: float = 0.0


@dataclass(frozen=True)
class Rig:
    """Where the camera stands and what it meets; ranges are drawn uniformly."""

    focal: tuple[float, float]  # fraction of the width
    horizon: tuple[float, float]  # fraction of the height
    eye: tuple[float, float]
    yaw: float
    bonnet: bool
    crowd: float  # factor on the number of persons
    traffic: float  # factor on the number of vehicles


@dataclass(frozen=True)
class Look:
    """One domain."""

    palette: Palette
    weathers: tuple[Weather, ...]
    sensor: Sensor
    rig: Rig


SOURCE = Look(
    palette=Palette(
        road=(
            Material((84, 86, 94), 0.10),
            Material(
                (150, 148, 142), 0.08, pattern="tiles", cell=(3.5, 5.0), joint=0.15, mottle=0.04
            ),
            Material(
                (132, 120, 108), 0.1, pattern="bricks", cell=(0.5, 0.3), joint=0.3, mottle=0.14
            ),
        ),
        sidewalk=(
            Material((184, 178, 168), 0.06, pattern="tiles", cell=(0.8, 0.8), joint=0.16),
            Material((196, 146, 122), 0.06, pattern="bricks", cell=(0.4, 0.2), joint=0.15),
            Material((152, 158, 168), 0.06, pattern="tiles", cell=(1.6, 1.2), joint=0.2),
        ),
        terrain=(
            Material((100, 156, 62), 0.35, 0.03),
            Material((182, 166, 92), 0.3, 0.03),
            Material((146, 106, 72), 0.25, 0.04),
        ),
        wall=(
            Material(
                (170, 92, 72), 0.1, pattern="bricks", cell=(0.5, 0.16), joint=-0.2, mottle=0.12
            ),
            Material((190, 188, 180), 0.1, pattern="tiles", cell=(2.4, 3.0), joint=0.25),
            Material(
                (146, 134, 112), 0.15, pattern="bricks", cell=(0.7, 0.4), joint=0.4, mottle=0.2
            ),
        ),
        facade=(
            Material(
                (176, 88, 66), 0.08, pattern="bricks", cell=(0.6, 0.24), joint=-0.2, mottle=0.1
            ),
            Material((232, 212, 168), 0.05),
            Material((208, 222, 214), 0.05),
            Material((222, 170, 150), 0.05),
            Material(
                (120, 166, 200), 0.04, pattern="tiles", cell=(1.6, 1.8), joint=0.4, mottle=0.14
            ),
        ),
        roof=((150, 74, 56), (92, 96, 108), (124, 108, 92)),
        window=((62, 84, 110), (118, 160, 196), (44, 52, 62)),
        fence=((58, 66, 62), (168, 120, 76), (232, 230, 222)),
        metal=((96, 100, 104), (60, 78, 70), (170, 172, 172)),
        leaf=((74, 148, 52), (34, 96, 56), (222, 150, 46), (146, 170, 60)),
        paint=(
            (204, 40, 40),
            (240, 240, 238),
            (44, 88, 188),
            (34, 34, 38),
            (236, 190, 40),
            (176, 182, 188),
            (40, 128, 84),
        ),
        cargo=((236, 236, 232), (60, 112, 180), (206, 120, 40)),
        livery=((222, 60, 48), (250, 206, 60), (52, 132, 200), (240, 240, 236)),
        cloth=(
            (206, 60, 60),
            (56, 96, 190),
            (240, 236, 226),
            (50, 50, 60),
            (234, 176, 52),
            (70, 150, 90),
            (170, 90, 170),
        ),
        skin=((232, 190, 160), (198, 144, 108), (120, 80, 58)),
        marking=(244, 242, 234),
        bare_trees=0.08,
    ),
    weathers=(
        Weather(
            (64, 128, 220),
            (176, 212, 244),
            (255, 255, 255),
            0.35,
            (0.5, 0.9, -0.35),
            0.62,
            0.55,
            saturation=1.12,
        ),
        Weather(
            (88, 150, 230),
            (226, 226, 226),
            (255, 250, 240),
            0.15,
            (-0.7, 0.7, -0.4),
            0.6,
            0.55,
            (1.06, 1.0, 0.92),
        ),
        Weather(
            (150, 172, 196),
            (206, 216, 226),
            (236, 238, 242),
            0.7,
            (0.2, 1.0, -0.3),
            0.74,
            0.85,
            (0.98, 1.0, 1.02),
        ),
    ),
    sensor=Sensor(),
    rig=Rig((0.80, 1.0), (0.40, 0.48), (1.5, 1.9), 0.06, False, 1.0, 1.0),
)

TARGET = Look(
    palette=Palette(
        road=(
            Material((66, 66, 70), 0.22),
            Material((112, 106, 98), 0.25, pattern="tiles", cell=(3.5, 7.0), joint=0.2),
            Material((92, 88, 88), 0.16, pattern="bricks", cell=(0.4, 0.4), joint=0.4, mottle=0.2),
        ),
        sidewalk=(
            Material((138, 132, 126), 0.15, pattern="tiles", cell=(0.6, 0.6), joint=0.22, mottle=0.12),
            Material((126, 104, 96), 0.15, pattern="bricks", cell=(0.3, 0.2), joint=0.2),
            Material((104, 108, 114), 0.18),
        ),
        terrain=(
            Material((86, 104, 56), 0.45, 0.03),
            Material((132, 122, 84), 0.4, 0.03),
            Material((98, 84, 66), 0.35, 0.05),
        ),
        wall=(
            Material((120, 84, 72), 0.2, pattern="bricks", cell=(0.5, 0.16), joint=0.25, mottle=0.2),
            Material((136, 134, 126), 0.25, pattern="tiles", cell=(1.6, 3.0), joint=0.3),
            Material((112, 106, 98), 0.2, pattern="bricks", cell=(0.9, 0.5), joint=0.4, mottle=0.25),
        ),
        facade=(
            Material((126, 82, 70), 0.15, pattern="bricks", cell=(0.5, 0.2), joint=0.2, mottle=0.2),
            Material((188, 172, 146), 0.14),
            Material((150, 150, 150), 0.16),
            Material((172, 150, 118), 0.14),
            Material((84, 104, 120), 0.1, pattern="tiles", cell=(1.3, 2.4), joint=0.5, mottle=0.3),
        ),
        roof=((104, 70, 60), (70, 70, 76), (94, 88, 80)),
        window=((46, 54, 64), (104, 116, 128), (30, 32, 36)),
        fence=((44, 48, 46), (112, 94, 72), (160, 162, 160)),
        metal=((74, 76, 78), (48, 56, 52), (132, 132, 130)),
        leaf=((72, 98, 50), (40, 62, 44), (160, 108, 44), (126, 76, 40)),
        paint=((30, 32, 36), (186, 188, 190), (122, 126, 130), (70, 80, 104), (132, 40, 40), (210, 208, 202), (74, 92, 80)),
        cargo=((196, 194, 186), (150, 60, 50), (70, 90, 120)),
        livery=((178, 150, 40), (150, 46, 44), (186, 186, 180), (60, 96, 84)),
        cloth=((40, 42, 50), (70, 74, 92), (112, 96, 78), (150, 148, 144), (96, 44, 46), (58, 76, 64), (176, 150, 60)),
        skin=((206, 168, 144), (172, 126, 98), (106, 74, 56)),
        marking=(196, 194, 186),
        bare_trees=0.3,
    ),
    weathers=(
        Weather((150, 156, 164), (196, 198, 200), (130, 134, 142), 0.8, (0.1, 1.0, -0.2), 0.82, 0.95,
                (0.86, 0.88, 0.92), 1.05, 0.75, 0.008),
        Weather((96, 112, 156), (250, 186, 120), (236, 150, 110), 0.5, (-0.85, 0.3, 0.45), 0.55, 0.6,
                (1.08, 0.88, 0.70), 1.2, 0.9, 0.006, 0.0, 0.4),
        Weather((176, 180, 184), (204, 206, 208), (190, 194, 198), 0.5, (0.0, 1.0, 0.0), 0.9, 1.0,
                (0.95, 0.97, 1.0), 0.95, 0.6, 0.022),
        Weather((104, 110, 120), (150, 156, 164), (84, 90, 100), 0.9, (0.0, 1.0, 0.0), 0.88, 1.0,
                (0.72, 0.78, 0.86), 1.1, 0.7, 0.012, 0.35, 0.6),
        Weather((44, 56, 96), (112, 112, 140), (60, 66, 96), 0.5, (0.3, 0.8, 0.3), 0.75, 0.9,
                (0.52, 0.58, 0.80), 1.15, 0.8, 0.008, 0.0, 1.0),
    ),
    sensor=Sensor((0.0, 0.0022), (3.0, 9.0), (45, 85), 0.35),
    rig=Rig((0.76, 1.15), (0.38, 0.50), (1.15, 1.45), 0.09, True, 1.25, 1.15),
)  # fmt: skip

LOOKS = {"source": SOURCE, "target": TARGET, "val": TARGET}


def paint_sky(canvas: Canvas, weather: Weather, rng: np.random.Generator, label: int) -> None:
    """Cover the whole canvas with sky: a gradient and clouds that recede towards the horizon."""
    camera = canvas.camera
    rows = np.arange(camera.height, dtype=np.float32)
    height = np.clip((camera.horizon - rows) / camera.focal, 0.004, None)[:, None]
    blend = np.clip(height * 2.4, 0, 1)[..., None] ** 0.7
    sky = np.asarray(weather.skyline) * (1 - blend) + np.asarray(weather.zenith) * blend
    right = (np.arange(camera.width, dtype=np.float32) - camera.width / 2)[None] / camera.focal
    far = 1 / (height + 0.12)
    u = (right * far * 46 + rng.uniform(0, TILE)) % TILE
    v = np.broadcast_to((far * 60 + rng.uniform(0, TILE)) % TILE, u.shape)
    field = cv2.remap(
        noise_tile(),
        u.astype(np.float32),
        v.astype(np.float32),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_WRAP,
    )
    threshold = 0.78 - 0.56 * weather.cover
    density = np.clip((field - threshold) * 4.5, 0, 0.95)[..., None]
    canvas.image[:] = np.clip(sky * (1 - density) + np.asarray(weather.cloud) * density, 0, 255)
    canvas.label[:] = label


def expose(canvas: Canvas, weather: Weather, rng: np.random.Generator) -> Array:
    """The scene through the air: haze by depth, lamps, the colour of the light. Float RGB (H, W, 3) in [0, 255]."""
    image = canvas.image.astype(np.float32)
    light = np.asarray(weather.tint, np.float32)
    image[canvas.depth < 9e3] *= light
    if weather.fog:
        seen = np.exp(-weather.fog * rng.uniform(0.7, 1.4) * np.minimum(canvas.depth, 400))[
            ..., None
        ]
        seen = np.where(canvas.depth[..., None] > 9e3, np.maximum(seen, 0.6), seen)
        image = image * seen + np.asarray(weather.skyline, np.float32) * light * (1 - seen)
    grey = image.mean(2, keepdims=True)
    image = np.clip(grey + weather.saturation * (image - grey), 0, 255)
    if weather.glow and canvas.glows:
        image = np.minimum(image + weather.glow * _halos(canvas), 255)
    return 255 * (image / 255) ** (weather.gamma * rng.uniform(0.9, 1.1))


def _halos(canvas: Canvas) -> Array:
    """Light around the lamps, painted small and blurred wide."""
    shrink = 4
    height, width = canvas.camera.height // shrink, canvas.camera.width // shrink
    layer = np.zeros((height, width, 3), np.float32)
    for x, y, radius, colour in canvas.glows:
        if 0 <= x < canvas.camera.width and 0 <= y < canvas.camera.height:
            centre = (int(x / shrink), int(y / shrink))
            cv2.circle(layer, centre, max(1, round(radius / shrink)), colour, -1)
    wide = cv2.GaussianBlur(layer, (0, 0), width / 60) * 3 + cv2.GaussianBlur(layer, (0, 0), 1)
    return cv2.resize(np.minimum(wide, 255), (canvas.camera.width, canvas.camera.height))


def sense(image: Array, weather: Weather, sensor: Sensor, rng: np.random.Generator) -> Array:
    """Rain, vignette, blur, noise and compression of a dash camera: float RGB (H, W, 3) -> uint8."""
    height, width = image.shape[:2]
    if weather.rain:
        image = image + _rain(height, width, weather.rain, rng)
    if sensor.vignette:
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
        image = image * (1 - rng.uniform(0, sensor.vignette) * ((x * x + y * y) / 2)[..., None])
    blur = rng.uniform(*sensor.blur) * width
    if blur > 0.2:
        sideways = rng.uniform(0.6, 1.6)
        image = cv2.GaussianBlur(image, (0, 0), sigmaX=blur * sideways, sigmaY=blur)
    level = rng.uniform(*sensor.noise)
    if level:
        grain = rng.standard_normal((height, width, 3), dtype=np.float32)
        image = image + level * (grain + grain.mean(2, keepdims=True)) * (0.6 + image / 400)
    pixels = np.clip(image, 0, 255).astype(np.uint8)
    if sensor.quality:
        options = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(*sensor.quality))]
        pixels = cv2.imdecode(
            cv2.imencode(".jpg", pixels[..., ::-1], options)[1], cv2.IMREAD_COLOR
        )[..., ::-1]
    return np.ascontiguousarray(pixels)


def _rain(height: int, width: int, density: float, rng: np.random.Generator) -> Array:
    """Streaks of rain, a layer to be added."""
    layer = np.zeros((height, width), np.float32)
    slope = rng.uniform(-0.25, 0.25)
    for _ in range(int(density * width)):
        x, y, length = (
            rng.uniform(0, width),
            rng.uniform(-20, height),
            rng.uniform(0.03, 0.12) * height,
        )
        end = (int(x + slope * length), int(y + length))
        cv2.line(layer, (int(x), int(y)), end, rng.uniform(15, 55), 1, cv2.LINE_AA)
    return cv2.GaussianBlur(layer, (0, 0), 0.6)[..., None]
