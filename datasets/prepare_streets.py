#!/usr/bin/env python
"""Write Streets, a small two-domain street benchmark that needs no download.

Streets is drawn by a program: ``source`` looks like a game, ``target`` and ``val`` like a dash
camera in autumn weather. It has the 19 classes and the folders of Cityscapes, and serves the
demo, the tests and quick comparisons; it replaces no real benchmark.

    python datasets/prepare_streets.py                          # 240 + 240 + 60 images of 256 x 512
    python datasets/prepare_streets.py --preview streets.png    # also draws a contact sheet

Below the output folder appear

    streets/leftImg8bit/{source,target,val}/<seq>/<seq>_<nnnnnn>_leftImg8bit.png
    streets/gtFine/{source,val}/<seq>/<seq>_<nnnnnn>_gtFine_labelTrainIds.png
    streets/manifest.json

Labels are 8-bit grey train ids, 255 = ignore; target has none on disk. The manifest holds the
parameters: a second call with the same ones finds it and ends at once. The same parameters give
the same bytes, whatever the number of workers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np
from streets_drawing.scene import render
from tqdm import tqdm

logger = logging.getLogger("streets")

NAME = "streets"
SEQUENCE_LENGTH = 30  # images in one folder
LABELLED = ("source", "val")


@dataclass(frozen=True)
class Parameters:
    """What decides every byte of the data set."""

    seed: int = 0
    height: int = 256
    width: int = 512
    source: int = 240
    target: int = 240
    val: int = 60

    def __post_init__(self) -> None:
        for name, smallest in (
            ("seed", 0),
            ("height", 32),
            ("width", 32),
            ("source", 0),
            ("target", 0),
            ("val", 0),
        ):
            if getattr(self, name) < smallest:
                raise ValueError(f"{name}={getattr(self, name)}, expected at least {smallest}")

    def manifest(self) -> dict[str, object]:
        """The parameters and a fingerprint of the code that draws."""
        modules = sorted(Path(__file__).parent.glob("streets_drawing/*.py"))
        code = b"".join(module.read_bytes() for module in modules)
        return {"name": NAME, **asdict(self), "generator": hashlib.sha256(code).hexdigest()[:16]}


@dataclass(frozen=True)
class Task:
    """One image to draw."""

    root: Path
    domain: str
    index: int
    seed: int
    height: int
    width: int

    def path(self, kind: str, suffix: str) -> Path:
        """File of this image below ``kind`` (leftImg8bit or gtFine)."""
        sequence = f"{self.domain}{self.index // SEQUENCE_LENGTH:02d}"
        return (
            self.root / kind / self.domain / sequence / f"{sequence}_{self.index:06d}_{suffix}.png"
        )


def draw(task: Task) -> None:
    """Render one image and write it, with its label where its domain has labels."""
    image, label = render(task.domain, task.seed, task.index, task.height, task.width)
    _write(task.path("leftImg8bit", "leftImg8bit"), image[..., ::-1])
    if task.domain in LABELLED:
        _write(task.path("gtFine", "gtFine_labelTrainIds"), label)


def _write(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), pixels):
        raise OSError(f"cannot write {path}")


def _read(path: Path, mode: int) -> np.ndarray:
    pixels = cv2.imread(str(path), mode)
    if pixels is None:
        raise OSError(f"cannot read {path}")
    return pixels


def prepare(output: Path, parameters: Parameters, workers: int) -> bool:
    """Write the data set below ``output`` unless it is there already.

    The images are drawn in a folder of their own that takes its final name when it is complete.

    Returns: whether anything was drawn.
    Raises: FileExistsError: ``output``/streets exists and was not written by this program.
    """
    final = (output / NAME).resolve()  # of a link, the folder that it leads to
    partial = final.with_name(f"{final.name}.partial")
    manifest = parameters.manifest()
    if final.exists():
        found = _read_manifest(final)
        if found == manifest:
            logger.info(
                "%s is complete (%d images); nothing to do", final, sum(_sizes(parameters).values())
            )
            return False
        changed = sorted(key for key in manifest if found.get(key) != manifest[key])
        logger.info(
            "%s was made with other values of %s; drawing it again", final, ", ".join(changed)
        )
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tasks = [
        Task(partial, domain, index, parameters.seed, parameters.height, parameters.width)
        for domain, size in _sizes(parameters).items()
        for index in range(size)
    ]
    with _mapper(workers) as run:
        for _ in tqdm(run(tasks), total=len(tasks), desc="streets", unit="image", disable=None):
            pass
    (partial / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    if final.exists():
        shutil.rmtree(final)
    partial.rename(final)
    return True


def _sizes(parameters: Parameters) -> dict[str, int]:
    return {"source": parameters.source, "target": parameters.target, "val": parameters.val}


def _read_manifest(folder: Path) -> dict[str, object]:
    try:
        found = json.loads((folder / "manifest.json").read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        found = {}
    if found.get("name") != NAME:
        raise FileExistsError(
            f"{folder} exists and was not written by this program; move it away first"
        )
    return dict(found)


@contextmanager
def _mapper(workers: int) -> Iterator[Callable[[list[Task]], Iterator[None]]]:
    """A function that draws many tasks, in this process or in several."""
    cv2.setNumThreads(1)
    if workers <= 1:
        yield lambda tasks: map(draw, tasks)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
        yield lambda tasks: pool.map(draw, tasks, chunksize=4)


def contact_sheet(folder: Path, rows: int = 8) -> np.ndarray:
    """RGB sheet with a row per image: image and label of source, image and label of val."""
    from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES

    colours = np.zeros((256, 3), np.uint8)
    for category in CITYSCAPES_CATEGORIES:
        colours[category["trainId"]] = category["color"]
    columns = []
    for domain in LABELLED:
        images = sorted((folder / "leftImg8bit" / domain).rglob("*.png"))[:rows]
        labels = sorted((folder / "gtFine" / domain).rglob("*.png"))[:rows]
        columns.append([_read(path, cv2.IMREAD_COLOR)[..., ::-1] for path in images])
        columns.append([colours[_read(path, cv2.IMREAD_GRAYSCALE)] for path in labels])
    return np.concatenate([np.concatenate(row, axis=1) for row in zip(*columns)], axis=0)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Parameters()
    output = os.environ.get("DETECTRON2_DATASETS", "datasets")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(output),
        help="parent of streets/ (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument(
        "--num-source", type=int, default=default.source, help="labelled images (%(default)s)"
    )
    parser.add_argument(
        "--num-target", type=int, default=default.target, help="unlabelled images (%(default)s)"
    )
    parser.add_argument(
        "--num-val", type=int, default=default.val, help="labelled target images (%(default)s)"
    )
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), default=(default.height, default.width)
    )
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes (%(default)s)"
    )
    parser.add_argument(
        "--preview", type=Path, metavar="FILE", help="write a contact sheet of images and labels"
    )
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = parse(arguments)
    height, width = args.size
    counts = {"source": args.num_source, "target": args.num_target, "val": args.num_val}
    parameters = Parameters(args.seed, height, width, **counts)
    if prepare(args.output, parameters, args.workers):
        logger.info("wrote %s", args.output / NAME)
    if args.preview:
        _write(args.preview, contact_sheet(args.output / NAME)[..., ::-1])


if __name__ == "__main__":  # not in the processes that draw, which need no mpcl
    from mpcl.utils.cli import DEBUG, user_errors

    with user_errors(Path(__file__).name, debug=DEBUG in sys.argv):
        main()
