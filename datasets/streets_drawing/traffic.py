"""Who and what is on a street: vehicles in lanes, parked ones, pedestrians, street furniture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from . import objects, vehicles
from .borders import Item, Side
from .canvas import Camera, Canvas, Frame, choose
from .looks import Palette, Rig

Rng = np.random.Generator
Painter = Callable[..., None]

LANE = 3.2  # metres
REACH = 90.0  # metres; nothing small is placed farther away
VEHICLES: dict[str, tuple[Painter, float]] = {  # painter, metres it takes
    "car": (vehicles.car, 5.5),
    "truck": (vehicles.truck, 9.0),
    "bus": (vehicles.bus, 13.0),
    "tram": (vehicles.tram, 24.0),
    "cyclist": (partial(vehicles.bicycle, ridden=True), 3.0),
    "motorcyclist": (partial(vehicles.motorcycle, ridden=True), 3.5),
}


@dataclass(frozen=True)
class Placed:
    """A thing on the street: where it stands across, which stretch of depth it takes."""

    x: float
    near: float
    far: float
    paint: Callable[[Canvas], None]


@dataclass(frozen=True)
class Street:
    """The plan of one image; lengths in metres."""

    lanes: int  # in each direction
    parking: bool
    sides: tuple[Side, Side]  # left, right
    crossing: float | None  # where another street crosses
    feature: str  # the rare thing that this image shows

    @property
    def curb(self) -> float:
        """Half of the road's width."""
        return self.sides[0].curb

    def crosses(self, start: float, end: float) -> bool:
        """Whether a stretch along the street touches the crossing street."""
        return self.crossing is not None and start < self.crossing + 5 and end > self.crossing - 5


class Traffic:
    """Fills a street from near to far and keeps the painter of each thing."""

    def __init__(
        self, street: Street, camera: Camera, palette: Palette, rig: Rig, rng: Rng
    ) -> None:
        self.street, self.camera, self.palette = street, camera, palette
        self.rig, self.rng = rig, rng
        self.placed: list[Placed] = []

    def fill(self) -> list[Item]:
        """Everything between the borders, in painter's order: larger keys first."""
        self._lanes()
        self._parking()
        for side in self.street.sides:
            self._pedestrians(side)
            self._parked_cycles(side)
            self._furniture(side)
        self._crossing()
        long = [thing for thing in self.placed if thing.far - thing.near > 8]
        return [(self._key(thing, long), thing.paint) for thing in self.placed]

    def _key(self, thing: Placed, long_ones: list[Placed]) -> float:
        """Depth of the near end; less for a thing that stands before the flank of a long one."""
        key, aside = thing.near, thing.x - self.camera.x
        for long in long_ones:
            flank = long.x - self.camera.x
            if long.near < thing.near < long.far and 0 <= aside * flank < flank * flank:
                key = min(key, long.near - 0.01 + 0.01 * thing.near / long.far)
        return key

    def _nearest(self, x: float, margin: float = 1.0) -> float:
        """The smallest Z at which a thing at ``x`` lies inside the image."""
        half = math.atan2(self.camera.width / 2, self.camera.focal) * 0.95
        angle = half + math.copysign(self.camera.yaw, x - self.camera.x)
        return max(5.0, abs(x - self.camera.x) / math.tan(max(angle, 0.2)) + margin)

    def _add(
        self, painter: Painter, x: float, z: float, heading: float = 0.0, length: float = 0.0
    ) -> None:
        frame = Frame(x, z, heading)
        own = np.random.default_rng(self.rng.integers(1 << 62))
        depth = self.camera.locate((x, 0.0, z))[2]
        paint = partial(painter, frame=frame, palette=self.palette, rng=own)
        self.placed.append(Placed(x, depth - length / 2, depth + length / 2, paint))

    def _vehicle(self, kind: str, x: float, z: float, heading: float) -> float:
        """Place a vehicle whose near end is at ``z``; returns where it ends."""
        painter, length = VEHICLES[kind]
        self._add(painter, x, z + length / 2, heading, length)
        return z + length

    def _lanes(self) -> None:
        """Moving vehicles; the featured one comes first in its lane."""
        rng, feature, lanes = self.rng, self.street.feature, self.street.lanes
        centres = [side * LANE * (n + 0.5) for side in (-1, 1) for n in range(lanes)]
        featured = -LANE / 2 if feature == "tram" else choose(rng, centres)
        for x in centres:
            ahead = abs(x - self.camera.x) < 1  # drives in front of the camera
            heading = (0.0 if x > 0 else math.pi) + rng.normal(scale=0.02)
            z = self._nearest(x, 11.0 if ahead else 1.5)
            if x == featured and feature in VEHICLES:
                z = self._vehicle(feature, x, z + rng.uniform(0, 6), heading)
            else:
                z += rng.uniform(-4, 10)
            while z < REACH:
                z += rng.exponential(16) / self.rig.traffic + 3
                kind = str(rng.choice(list(VEHICLES), p=(0.85, 0.035, 0.035, 0.0, 0.04, 0.04)))
                aside = math.copysign(0.9, x) if kind == "cyclist" else 0.0
                z = self._vehicle(kind, x + aside, z, heading)

    def _parking(self) -> None:
        """Parked cars, seldom a truck, with gaps."""
        for sign in (-1, 1) if self.street.parking else ():
            x, density = sign * (self.street.curb - 1.0), self.rng.uniform(0.2, 0.9)
            z = self._nearest(x) + self.rng.uniform(0, 4)
            while z < 70:
                if self.rng.random() < density and not self.street.crosses(z - 4, z + 9):
                    kind = "truck" if self.rng.random() < 0.03 else "car"
                    z = self._vehicle(kind, x, z, 0.0 if sign > 0 else math.pi)
                z += self.rng.uniform(0.3, 2.5)

    def _pedestrians(self, side: Side) -> None:
        rng = self.rng
        for _ in range(rng.poisson(2.2 * self.rig.crowd)):
            x = side.sign * rng.uniform(side.walk[0] + 0.3, side.walk[1] - 0.3)
            z = self._nearest(x) + rng.exponential(12)
            for companion in range(2 if rng.random() < 0.25 else 1):
                heading = choose(rng, (0.0, math.pi)) + rng.normal(scale=0.4)
                self._add(objects.person, x + 0.6 * companion, z, heading)

    def _parked_cycles(self, side: Side) -> None:
        """A row of bicycles or motorcycles by the curb."""
        rng, x = self.rng, side.sign * (side.curb + 0.9)
        featured = self.street.feature == "motorcycle" and side.sign == 1
        if not featured and rng.random() > 0.35:
            return
        motor = featured or rng.random() < 0.25
        painter = vehicles.motorcycle if motor else vehicles.bicycle
        z, lengthwise = self._nearest(x) + rng.uniform(0, 6), rng.random() < 0.5
        for place in range(int(rng.integers(1, 4))):
            heading = rng.normal(scale=0.12) + (0.0 if lengthwise else side.sign * math.pi / 2)
            self._add(painter, x, z + place * (2.2 if lengthwise else 0.9), heading)

    def _furniture(self, side: Side) -> None:
        """Lamps, signs, signals, trees and bins along the curb."""
        rng, street, x = self.rng, self.street, side.sign * (side.curb + 0.6)
        over_road = 0.0 if side.sign > 0 else math.pi
        first = self._nearest(x)
        for z in np.arange(first + rng.uniform(0, 12), REACH, rng.uniform(18, 30)).tolist():
            self._add(objects.street_lamp, x, z, over_road)
        for _ in range(rng.poisson(1.0)):
            self._add(objects.traffic_sign, x, first + rng.exponential(10))
        if street.crossing is not None:
            self._add(objects.traffic_light, x, street.crossing - 4.2, over_road)
        elif rng.random() < 0.3:
            self._add(objects.traffic_light, x, first + rng.uniform(0, 15), over_road)
        if rng.random() < 0.3:
            bin_x = side.sign * (side.walk[1] - 0.4)
            self._add(objects.litter_bin, bin_x, self._nearest(bin_x) + rng.exponential(8))
        if rng.random() < 0.45:
            gap = rng.uniform(7, 14)
            for z in np.arange(first + 2 + rng.uniform(0, gap), REACH, gap).tolist():
                if not street.crosses(z, z):
                    self._add(objects.tree, x + 0.4 * side.sign, z)

    def _crossing(self) -> None:
        """People who cross, and a vehicle from the side."""
        rng, street = self.rng, self.street
        sideways = (math.pi / 2, -math.pi / 2)
        if street.crossing is None:
            if rng.random() < 0.3:
                x = rng.uniform(-0.8, 0.8) * street.curb
                self._add(
                    objects.person,
                    x,
                    self._nearest(x, 6) + rng.exponential(6),
                    choose(rng, sideways),
                )
            return
        for _ in range(rng.poisson(1.8 * self.rig.crowd)):
            z = street.crossing - rng.uniform(4.8, 6.4)
            self._add(objects.person, rng.uniform(-1, 1) * street.curb, z, choose(rng, sideways))
        if rng.random() < 0.5:
            kinds = ("car", "car", "cyclist", "motorcyclist", "truck", "bus")
            painter, heading = VEHICLES[choose(rng, kinds)][0], choose(rng, sideways)
            z = street.crossing - math.copysign(1.6, heading)
            self._add(painter, rng.uniform(-0.9, 0.9) * street.curb, z, heading)
