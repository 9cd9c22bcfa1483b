"""Files as those of GTA5 and Cityscapes, of coloured blocks."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mpcl.data.sets.driving_classes import CITYSCAPES_COLORS


def write_driving_sets(root: Path, source: tuple[int, int], target: tuple[int, int]) -> None:
    """Four images of GTA5, and of each of Cityscapes' splits, of these (height, width)."""
    for number in range(4):
        image, label = street_blocks(number, *source)
        _save(image, root / f"gta5/images/{number:05d}.png")
        _save(label, root / f"gta5/labels/{number:05d}_labelTrainIds.png")
    for split, city in (("train", "aachen"), ("val", "lindau")):
        for number in range(4):
            image, label = street_blocks(100 + number, *target)
            stem = f"{city}/{city}_{number:06d}_000019"
            _save(image, root / f"cityscapes/leftImg8bit/{split}/{stem}_leftImg8bit.png")
            labels = f"cityscapes/gtFine/{split}/{stem}_gtFine_"
            _save(label, root / f"{labels}labelTrainIds.png")
            for other in ("labelIds.png", "instanceIds.png"):
                (root / f"{labels}{other}").touch()  # Detectron2 looks whether they are there
            size = {"imgHeight": target[0], "imgWidth": target[1]}
            (root / f"{labels}polygons.json").write_text(json.dumps(size))


def street_blocks(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of all 19 classes in their colours, with noise; and their train ids."""
    rng = np.random.default_rng(seed)
    blocks = rng.permutation(32) % 19
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 8 // width
    label = blocks.reshape(4, 8)[rows][:, columns]
    image = np.array(CITYSCAPES_COLORS)[label] + rng.normal(0, 10, (height, width, 1))
    return image.clip(0, 255).astype(np.uint8), label.astype(np.uint8)


def _save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
