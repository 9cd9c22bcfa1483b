"""What tells the two domains of Streets apart: materials, weathers, sensor and rig.

``source`` looks like a game (clean, saturated, crisp shadows), ``target`` like a dash camera in
autumn (worn materials, low or no sun, haze, rain, noise). Every class has several modes in both,
so that one prototype does not describe it.
"""

from __future__ import annotations

from dataclasses import dataclass

from .canvas import RGB, Material, Point

# Train ids of Cityscapes.
(ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN, SKY, PERSON, RIDER,
 CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE) = range(19)  # fmt: skip
IGNORE = 255


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
        Weather(  # noon
            (64, 128, 220), (176, 212, 244), (255, 255, 255), 0.35, (0.5, 0.9, -0.35), 0.62, 0.55,
            saturation=1.12),
        Weather(  # morning
            (88, 150, 230), (226, 226, 226), (255, 250, 240), 0.15, (-0.7, 0.7, -0.4), 0.6, 0.55,
            tint=(1.06, 1.0, 0.92)),
        Weather(  # light clouds
            (150, 172, 196), (206, 216, 226), (236, 238, 242), 0.7, (0.2, 1.0, -0.3), 0.74, 0.85,
            tint=(0.98, 1.0, 1.02)),
        Weather(  # late afternoon
            (96, 132, 190), (240, 206, 170), (250, 220, 196), 0.4, (-0.8, 0.5, 0.2), 0.7, 0.62,
            tint=(1.06, 0.98, 0.88)),
    ),
    sensor=Sensor(),
    rig=Rig((0.95, 1.15), (0.40, 0.48), (1.5, 1.9), 0.06, False, 1.0, 1.0),
)  # fmt: skip

TARGET = Look(
    palette=Palette(
        road=(
            Material((73, 74, 80), 0.22),
            Material((127, 123, 116), 0.25, pattern="tiles", cell=(3.5, 7.0), joint=0.2),
            Material((108, 101, 96), 0.16, pattern="bricks", cell=(0.4, 0.4), joint=0.4),
        ),
        sidewalk=(
            Material((156, 150, 143), 0.15, pattern="tiles", cell=(0.6, 0.6), joint=0.22),
            Material((154, 121, 106), 0.15, pattern="bricks", cell=(0.3, 0.2), joint=0.2),
            Material((123, 128, 136), 0.18),
        ),
        terrain=(
            Material((92, 125, 58), 0.45, 0.03),
            Material((152, 140, 87), 0.4, 0.03),
            Material((117, 93, 68), 0.35, 0.05),
        ),
        wall=(
            Material((140, 87, 72), 0.2, pattern="bricks", cell=(0.5, 0.16), mottle=0.2),
            Material((158, 156, 148), 0.25, pattern="tiles", cell=(1.6, 3.0), joint=0.3),
            Material((126, 117, 104), 0.2, pattern="bricks", cell=(0.9, 0.5), joint=0.4),
        ),
        facade=(
            Material((146, 84, 68), 0.15, pattern="bricks", cell=(0.5, 0.2), joint=0.2, mottle=0.2),
            Material((206, 188, 155), 0.14),
            Material((173, 179, 176), 0.16),
            Material((192, 158, 131), 0.14),
            Material((98, 129, 152), 0.1, pattern="tiles", cell=(1.3, 2.4), joint=0.5, mottle=0.3),
        ),
        roof=((122, 72, 58), (79, 80, 89), (106, 96, 85)),
        window=((52, 66, 82), (110, 134, 155), (36, 40, 46)),
        fence=((51, 56, 54), (130, 106, 76), (177, 179, 177)),
        metal=((83, 86, 89), (55, 66, 60), (147, 147, 144)),
        leaf=((74, 124, 50), (38, 82, 48), (188, 128, 44), (124, 128, 48)),
        paint=((36, 38, 44), (204, 207, 210), (135, 140, 145), (76, 89, 122), (163, 39, 39),
               (232, 229, 221), (82, 106, 90)),
        cargo=((217, 214, 203), (183, 62, 48), (73, 100, 141)),
        livery=((211, 173, 25), (185, 44, 42), (205, 205, 197), (63, 112, 96)),
        cloth=((46, 49, 60), (77, 83, 107), (129, 108, 84), (167, 164, 159), (117, 47, 49),
               (64, 89, 73), (207, 172, 50)),
        skin=((216, 177, 150), (182, 133, 102), (112, 76, 57)),
        marking=(215, 213, 205),
        bare_trees=0.12,
    ),
    weathers=(
        Weather(  # overcast
            (156, 164, 176), (204, 208, 212), (150, 154, 162), 0.8, (0.1, 1.0, -0.2), 0.82, 0.95,
            tint=(0.84, 0.90, 0.86), gamma=1.1, saturation=0.8, fog=0.002),
        Weather(  # sunset
            (96, 122, 176), (246, 196, 140), (236, 168, 130), 0.45, (-0.85, 0.35, 0.4), 0.6, 0.6,
            tint=(1.08, 0.80, 0.54), gamma=1.15, saturation=1.0, fog=0.002, glow=0.3),
        Weather(  # fog
            (182, 188, 194), (208, 211, 214), (198, 202, 206), 0.5, (0.0, 1.0, 0.0), 0.9, 1.0,
            tint=(0.94, 0.97, 1.0), saturation=0.8, fog=0.007),
        Weather(  # rain
            (124, 132, 144), (170, 176, 184), (108, 114, 124), 0.9, (0.0, 1.0, 0.0), 0.88, 1.0,
            tint=(0.66, 0.74, 0.86), gamma=1.15, saturation=0.85, fog=0.003, rain=0.2, glow=0.4),
        Weather(  # dusk
            (58, 76, 126), (140, 142, 168), (84, 92, 126), 0.5, (0.3, 0.8, 0.3), 0.75, 0.9,
            tint=(0.44, 0.52, 0.80), gamma=1.2, saturation=0.95, fog=0.002, glow=0.8),
    ),
    sensor=Sensor((0.0, 0.0014), (1.5, 4.5), (50, 90), 0.3),
    rig=Rig((0.90, 1.25), (0.38, 0.50), (1.2, 1.5), 0.08, True, 1.2, 1.1),
)  # fmt: skip

LOOKS = {"source": SOURCE, "target": TARGET, "val": TARGET}
