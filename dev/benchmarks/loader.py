"""Images per second and core of the data pipeline, against plain decoding of the same files, and
from a zip archive against files."""

import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from PIL import Image

from mpcl.data.mapper import SourceMapper, TargetMapper
from mpcl.data.sampler import NO_CLASS, Draw

from .timing import Row, compare, device_name, row

SIZES = {"GTA5": (1052, 1914), "Cityscapes": (1024, 2048)}


def add_arguments(parser) -> None:
    parser.add_argument(
        "--images", type=int, default=4, help="of each kind, written to a temporary folder"
    )
    parser.add_argument("--repeats", type=int, default=3)


def run(args) -> list[Row]:
    cv2.setNumThreads(0)  # as in the loader's workers
    rows: list[Row] = []
    common = {"crop_size": (640, 640), "flip": True, "pad_color": (124, 116, 104)}
    source = SourceMapper(
        size=(1280, 720),
        single_category_max_area=0.75,
        min_crop_fraction=0.0,
        photometric_distortion=False,
        label_maps={},
        **common,
    )
    target = TargetMapper(size=(1280, 640), **common)
    with TemporaryDirectory() as folder:
        for kind, mapper in (("GTA5", source), ("Cityscapes", target)):
            records = [write_image(Path(folder), kind, i) for i in range(args.images)]
            if mapper is target:
                records = [{"file_name": record["file_name"]} for record in records]
            rows += _rates(kind, mapper, records, args)
    return rows


def write_image(folder: Path, kind: str, number: int) -> dict[str, str]:
    """A PNG that compresses about as photographs do, and its label map."""
    rng = np.random.default_rng(number)
    height, width = SIZES[kind]
    coarse = rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    image = (image + rng.normal(0, 3, image.shape)).clip(0, 255).astype(np.uint8)
    label = cv2.resize(coarse[..., 0] % 19, (width, height), interpolation=cv2.INTER_NEAREST)
    files = {
        "file_name": folder / f"{kind}_{number}.png",
        "sem_seg_file_name": folder / f"{kind}_{number}_label.png",
    }
    cv2.imwrite(str(files["file_name"]), image)
    cv2.imwrite(str(files["sem_seg_file_name"]), label)
    return {key: str(path) for key, path in files.items()}


def _packed(record: dict[str, str]) -> dict[str, str]:
    """The record with its files in a deflated archive, as data sets are published."""
    place = Path(record["file_name"]).with_suffix(".zip")
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in record.values():
            archive.write(path, Path(path).name)
    return {key: f"{place}/{Path(path).name}" for key, path in record.items()}


def _rates(kind: str, mapper, records: list[dict], args) -> list[Row]:
    packed = [_packed(record) for record in records]

    def decode() -> None:
        for record in records:
            for path in record.values():
                np.asarray(Image.open(path))

    def pipeline(records: list[dict]) -> None:
        for seed, record in enumerate(records):
            mapper(record, Draw(index=0, seed=seed, rare_class=NO_CLASS))

    variants = {
        "pipeline": lambda: pipeline(records),
        "zip": lambda: pipeline(packed),
        "decode": decode,
    }
    samples = compare(variants, device="cpu", repeats=args.repeats)
    rate = {name: len(records) / sample.seconds for name, sample in samples.items()}
    files = "image and label" if len(records[0]) > 1 else "image"
    name, unit, device = f"{kind}-sized PNGs ({files})", "images/s/core", device_name("cpu")
    return [
        row(f"{name} over plain Pillow decoding", rate["pipeline"], unit, rate["decode"], device),
        row(f"{name} from a zip over from files", rate["zip"], unit, rate["pipeline"], device),
    ]
