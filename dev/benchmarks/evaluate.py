"""Everything of an evaluation but the network: detectron2's stock evaluator against ours."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from PIL import Image

from mpcl.data.labels import read_label
from mpcl.data.sets.driving_classes import CITYSCAPES_CLASSES
from mpcl.evaluation.evaluator import SegmentationEvaluator

from .timing import Row, against, compare

NAME = "benchmark_sem_seg_val"


def add_arguments(parser) -> None:
    parser.add_argument("--images", type=int, default=2, help="of 1024x2048 pixels")
    parser.add_argument("--repeats", type=int, default=2)


def run(args) -> list[Row]:
    with TemporaryDirectory() as folder:
        inputs, outputs = _problem(Path(folder), args.images, args.device)
        found: dict[str, float] = {}

        def evaluate(name: str, build: Callable[[], SemSegEvaluator]) -> None:
            evaluator = build()
            evaluator.reset()
            for record, output in zip(inputs, outputs):
                evaluator.process([record], [output])
            found[name] = evaluator.evaluate()["sem_seg"]["mIoU"]

        ours = f"evaluation of {args.images} predictions of 1024x2048"
        calls = {
            ours: lambda: evaluate(ours, lambda: SegmentationEvaluator(NAME)),
            "detectron2's": lambda: evaluate("detectron2's", lambda: _stock(folder)),
        }
        try:
            samples = compare(calls, device=args.device, repeats=args.repeats)
        finally:
            DatasetCatalog.remove(NAME)
            MetadataCatalog.remove(NAME)
        if found[ours] != found["detectron2's"]:
            raise RuntimeError(f"the evaluators differ: {found}")
        return against(ours, samples, "detectron2's", args.device)


def _stock(folder: str) -> SemSegEvaluator:
    # Its own label reader fails with NumPy 2.
    return SemSegEvaluator(
        NAME,
        output_dir=folder,
        sem_seg_loading_fn=lambda file, dtype: read_label(file).astype(dtype),
    )


def _problem(folder: Path, count: int, device: str) -> tuple[list[dict], list[dict]]:
    """Registers labels on disk, and makes logits that are right in most places."""
    rng, records, outputs = np.random.default_rng(0), [], []
    for i in range(count):
        coarse = rng.integers(0, 19, (32, 64), dtype=np.uint8)
        label = np.kron(coarse, np.ones((32, 32), np.uint8))
        files = {
            "file_name": str(folder / f"{i}.png"),
            "sem_seg_file_name": str(folder / f"{i}_label.png"),
        }
        Image.fromarray(label).save(files["sem_seg_file_name"])
        Image.fromarray(label).save(files["file_name"])
        records.append({**files, "height": 1024, "width": 2048})
        logits = torch.nn.functional.one_hot(torch.from_numpy(label).long(), 19).permute(2, 0, 1)
        noisy = 2.0 * logits + torch.randn(logits.shape, generator=torch.Generator().manual_seed(i))
        outputs.append({"sem_seg": noisy.to(device)})
    DatasetCatalog.register(NAME, lambda: records)
    MetadataCatalog.get(NAME).set(
        stuff_classes=list(CITYSCAPES_CLASSES), ignore_label=255, evaluator_type="sem_seg"
    )
    return records, outputs
