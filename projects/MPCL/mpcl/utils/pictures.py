"""Pictures in rows and columns, with captions and a legend.

(H, W, 3) uint8 RGB arrays are called pictures.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .ignore_label import IGNORE_LABEL

Picture = NDArray[np.uint8]

GAP = 4
CAPTION_HEIGHT = 20
LEGEND_HEIGHT = 22
_SCALE_WIDTH = 120
ERROR_COLORS = {"errors: wrong": (214, 39, 40), "errors: not labelled": (0, 0, 0)}
"""What the colours of :func:`error_map` mean."""
IGNORED_COLOR = (0, 0, 0)
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def colorize(label: Tensor | NDArray[np.integer], colors: Sequence[Sequence[int]]) -> Picture:
    """(H, W) class ids to an (H, W, 3) uint8 RGB picture; ids without a colour are black."""
    palette = np.array([*map(tuple, colors), IGNORED_COLOR], np.uint8)
    ids = label.cpu().numpy() if isinstance(label, Tensor) else label
    picture: Picture = palette[np.minimum(ids, len(colors))]
    return picture


def error_map(image: Picture, truth: NDArray[np.uint8], prediction: NDArray[np.uint8]) -> Picture:
    """Red where the prediction is wrong, black where there is no truth (id 255), else the image in
    light grey.

    Raises: ValueError: the three differ in their height or width.
    """
    if not image.shape[:2] == truth.shape == prediction.shape:
        raise ValueError(
            f"image {image.shape}, truth {truth.shape} and prediction {prediction.shape} differ"
        )
    grey = image.mean(axis=2, keepdims=True) * 0.4 + 140
    picture = np.repeat(grey, 3, axis=2).astype(np.uint8)
    wrong, unlabelled = ERROR_COLORS.values()
    picture[truth != prediction] = wrong
    picture[truth == IGNORE_LABEL] = unlabelled
    return picture


def heat(values: NDArray[np.floating], low: float = 0.0, high: float = 1.0) -> Picture:
    """(H, W) numbers as the colours of viridis: dark blue is ``low``, yellow ``high``."""
    scaled = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    return np.asarray(matplotlib.colormaps["viridis"](scaled, bytes=True)[..., :3])


def blend(image: Picture, over: Picture, opacity: float) -> Picture:
    """``over`` on top of the image."""
    mixed = image * (1 - opacity) + over * opacity
    return np.asarray(mixed.round().astype(np.uint8))


def fit(picture: NDArray[np.uint8], width: int, nearest: bool = False) -> NDArray[np.uint8]:
    """The picture, or label map, no wider than ``width``; aspect ratio kept.

    Args:
        nearest: for class ids, which must not be averaged.
    """
    height, own = picture.shape[:2]
    if own <= width:
        return picture
    size = (width, max(1, round(height * width / own)))
    method = Image.Resampling.NEAREST if nearest else Image.Resampling.BOX
    return np.asarray(Image.fromarray(picture).resize(size, method))


def grid(
    rows: Sequence[Sequence[Picture | None]], captions: Sequence[str] = (), gap: int = GAP
) -> Image.Image:
    """Pictures on white, each in the top left corner of its cell.

    Args:
        rows: pictures from left to right; None leaves a cell empty, short rows end early.
        captions: above the columns.
    """
    shapes = [[(0, 0) if p is None else p.shape[:2] for p in row] for row in rows]
    heights = [max(height for height, _ in row) for row in shapes]
    widths = [
        max(width for _, width in column) for column in zip_longest(*shapes, fillvalue=(0, 0))
    ]
    top = CAPTION_HEIGHT if captions else 0
    size = (sum(widths) + gap * (len(widths) - 1), top + sum(heights) + gap * (len(rows) - 1))
    canvas = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(canvas)
    lefts = [sum(widths[:i]) + gap * i for i in range(len(widths))]
    for left, width, caption in zip(lefts, widths, captions):
        draw.text((left + 2, 2), _shorten(caption, width - 4), fill=_INK, font=font())
    y = top
    for row, height in zip(rows, heights):
        for left, picture in zip(lefts, row):
            if picture is not None:
                canvas.paste(Image.fromarray(picture), (left, y))
        y += height + gap
    return canvas


def with_legend(
    picture: Image.Image, names: Sequence[str], colors: Sequence[Sequence[int]]
) -> Image.Image:
    """The picture, and below it what the colours mean, in as many lines as it takes."""
    lines: list[list[tuple[int, int]]] = [[]]  # (class, left) by line
    x = 0
    for index, name in enumerate(names):
        width = 24 + round(font().getlength(name)) + 12
        if x and x + width > picture.width:
            lines.append([])
            x = 0
        lines[-1].append((index, x))
        x += width
    canvas, draw = _with_lines(picture, len(lines))
    for number, line in enumerate(lines):
        y = picture.height + GAP + LEGEND_HEIGHT * number
        for index, left in line:
            red, green, blue = colors[index]
            draw.rectangle((left + 2, y + 4, left + 18, y + 18), (red, green, blue), outline=_INK)
            draw.text((left + 24, y + 3), names[index], fill=_INK, font=font())
    return canvas


def legend(names: Sequence[str], colors: Sequence[Sequence[int]]) -> Image.Image:
    """What the colours mean, as a picture of its own; wider where the longest name needs it."""
    longest = max((round(font().getlength(name)) for name in names), default=0)
    return with_legend(Image.new("RGB", (max(480, 24 + longest + 12), 1), _PAPER), names, colors)


def with_scale(picture: Image.Image, title: str, low: str = "0", high: str = "1") -> Image.Image:
    """The picture, and below it what the colours of :func:`heat` mean, from ``low`` to ``high``."""
    canvas, draw = _with_lines(picture, 1)
    bar = np.tile(heat(np.linspace(0, 1, _SCALE_WIDTH)[None]), (LEGEND_HEIGHT - 8, 1, 1))
    x, y = 2, picture.height + GAP
    for part in (f"{title}: {low}", bar, high):
        if isinstance(part, str):
            draw.text((x, y + 3), part, fill=_INK, font=font())
            x += round(font().getlength(part)) + 8
        else:
            canvas.paste(Image.fromarray(part), (x, y + 4))
            x += _SCALE_WIDTH + 8
    return canvas


def _with_lines(picture: Image.Image, number: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """The picture with room below it for lines of a legend."""
    height = picture.height + GAP + LEGEND_HEIGHT * number
    canvas = Image.new("RGB", (picture.width, height), _PAPER)
    canvas.paste(picture, (0, 0))
    return canvas, ImageDraw.Draw(canvas)


@lru_cache
def font(size: int = 13) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, and has the signs ≥ and … of the captions."""
    file = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), size)


def _shorten(text: str, width: float) -> str:
    shown = text
    while text and font().getlength(shown) > width:
        text = text[:-1]
        shown = f"{text}…"
    return shown
