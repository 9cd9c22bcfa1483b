"""Pictures of an inspection: image patches around the nearest pixels, and the distance matrix."""

from functools import lru_cache

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

from ..data.decoding import read_image
from ..utils.pictures import Picture, font, grid
from .prototype_inspection import Inspection, Patch, Prototype

SIDE = 56  # pixels of a patch in the picture
_PART = 0.22  # of the image's height that a patch shows
_NAME_WIDTH = 120


def patch_picture(patch: Patch) -> Picture:
    """(SIDE, SIDE) picture around a pixel, which is in its middle; grey beyond the image."""
    image = _image(patch.file)
    height, width = image.shape[:2]
    half = max(4, round(_PART * height / 2))
    padded = np.pad(image, ((half, half), (half, half), (0, 0)), constant_values=128)
    top, left = int(patch.y * height), int(patch.x * width)
    crop = padded[top : top + 2 * half, left : left + 2 * half]
    picture = Image.fromarray(crop).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    middle = SIDE // 2
    mark = (middle - 2, middle - 2, middle + 2, middle + 2)
    ImageDraw.Draw(picture).ellipse(mark, fill=(255, 255, 255), outline=(0, 0, 0))
    return np.asarray(picture)


@lru_cache(maxsize=8)
def _image(file: str) -> Picture:
    return np.ascontiguousarray(read_image(file)[..., ::-1])


def strip(prototype: Prototype, length: int) -> Picture:
    """Patches of a prototype from left to right, white where there are fewer than ``length``."""
    step = SIDE + 2
    canvas = np.full((SIDE, length * step, 3), 255, np.uint8)
    for i, patch in enumerate(prototype.nearest[:length]):
        canvas[:, i * step : i * step + SIDE] = patch_picture(patch)
    return canvas


def gallery(inspection: Inspection) -> Image.Image:
    """Classes in rows, their prototypes in columns, the nearest patches and the usage in each
    cell."""
    length = max(len(prototype.nearest) for prototype in inspection.prototypes)
    rows: list[list[Picture | None]] = []
    for name, prototypes in inspection.by_class.items():
        cells = [_labelled(strip(p, max(length, 1)), p) for p in prototypes]
        title = Image.new("RGB", (_NAME_WIDTH, SIDE), (255, 255, 255))
        ImageDraw.Draw(title).text((2, SIDE // 2 - 8), name, fill=(20, 20, 20), font=font())
        rows.append([np.asarray(title), *cells])
    number = max(prototype.number for prototype in inspection.prototypes)
    captions = ["class", *(f"prototype {k + 1}" for k in range(number))]
    return grid(rows, captions, gap=8)


def _labelled(picture: Picture, prototype: Prototype) -> Picture:
    text = f"{100 * prototype.share:.0f} % of pixels{', dead' if prototype.dead else ''}"
    canvas = Image.new("RGB", (picture.shape[1], picture.shape[0] + 16), (255, 255, 255))
    canvas.paste(Image.fromarray(picture), (0, 0))
    ImageDraw.Draw(canvas).text((1, picture.shape[0] + 1), text, fill=(60, 60, 60), font=font(11))
    return np.asarray(canvas)


def distance_figure(inspection: Inspection) -> Figure:
    """All prototypes against all: dark is near. Lines separate the classes."""
    owners = [p.class_name for p in inspection.prototypes]
    names = list(dict.fromkeys(owners))
    first = [owners.index(name) for name in names]
    ends = [*first[1:], len(inspection.prototypes)]
    size = max(6.0, 2.5 + 0.35 * len(names))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(inspection.distances, cmap="viridis", interpolation="nearest")
    for position in first[1:]:
        axes.axhline(position - 0.5, color="white", lw=0.7)
        axes.axvline(position - 0.5, color="white", lw=0.7)
    middle = [(start + end - 1) / 2 for start, end in zip(first, ends)]
    axes.set_xticks(middle, names, rotation=90)
    axes.set_yticks(middle, names)
    axes.set_title("distance between prototypes")
    figure.colorbar(shown, ax=axes, label="root mean square over channels", shrink=0.8)
    return figure
