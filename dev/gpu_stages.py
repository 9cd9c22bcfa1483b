#!/usr/bin/env python
"""What tools/gpu_check.py measures, one stage in a process:

  python dev/gpu_stages.py STAGE --folder DIR [--device cuda] [--tiny]

Writes the stage's figures to DIR/STAGE.json. Without --tiny a stage takes the sizes of the paper.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from benchmarks.step import CONFIGS, SyntheticTrainer, build
from benchmarks.timing import compare, measure
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from mpcl import Predictor
from mpcl.config import get_cfg_from
from mpcl.data.paired_loader import build_test_loader
from mpcl.data.sets.driving_classes import CITYSCAPES_COLORS
from mpcl.evaluation.evaluator import SegmentationEvaluator
from mpcl.prototypes.kmeans import kmeans

ROOT = Path(__file__).resolve().parents[1]
TINY = ["MODEL.MIT.VARIANT", "b0", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16", "PROTOTYPES.DIM", "16"]
TINY += ["INPUT.CROP.SIZE", "(64, 64)", "MODEL.HRDA.DETAIL_SIZE", "(32, 32)"]
TINY += ["INPUT.SOURCE_SIZE", "(160, 96)", "INPUT.TARGET_SIZE", "(128, 64)"]
TINY += ["SELF_TRAINING.MASKED.BLOCK_SIZE", "16", "PROTOTYPES.BANK.SIZE", "400"]
TINY += ["TEST.SLIDE.CROP", "(64, 64)", "TEST.SLIDE.STRIDE", "(32, 32)"]
TINY += ["SOLVER.AMP.ENABLED", "False"]
Figures = dict[str, object]


class Stage:
    """Where a stage works, and at which size."""

    def __init__(self, folder: Path, device: str, tiny: bool) -> None:
        self.folder, self.device, self.tiny = folder, device, tiny
        self.size = TINY if tiny else []

    def trainer(self, name: str, *opts: str) -> SyntheticTrainer:
        """In the middle of a training on noise."""
        folder = self.folder / "scratch"
        folder.mkdir(exist_ok=True)
        where = ["MODEL.DEVICE", self.device, "OUTPUT_DIR", str(folder)]
        return build(CONFIGS / f"{name}.yaml", [*self.size, *where, *opts])

    def seconds(self, *trainers: SyntheticTrainer) -> list[float]:
        """Of a step of each, in turn."""
        calls = {str(number): trainer.step_once for number, trainer in enumerate(trainers)}
        samples = compare(calls, device=self.device, repeats=1 if self.tiny else 5)
        return [sample.seconds for sample in samples.values()]

    def data(self) -> Path:
        """GTA5 and Cityscapes in the formats that training reads, and random ImageNet weights."""
        root = self.folder / "data"
        if root.exists():
            return root
        sizes = ((96, 160), (64, 128)) if self.tiny else ((1052, 1914), (1024, 2048))
        for number in range(4):
            image, label = _scene(number, *sizes[0])
            _save(image, root / f"gta5/images/{number:05d}.png")
            _save(label, root / f"gta5/labels/{number:05d}_labelTrainIds.png")
        for split, city in (("train", "aachen"), ("val", "lindau")):
            for number in range(4):
                image, label = _scene(100 + number, *sizes[1])
                stem = f"{city}/{city}_{number:06d}_000019"
                _save(image, root / f"cityscapes/leftImg8bit/{split}/{stem}_leftImg8bit.png")
                labels = f"cityscapes/gtFine/{split}/{stem}_gtFine_"
                _save(label, root / f"{labels}labelTrainIds.png")
                for other in ("labelIds.png", "instanceIds.png"):
                    (root / f"{labels}{other}").touch()  # Detectron2 looks whether they are there
                size = {"imgHeight": sizes[1][0], "imgWidth": sizes[1][1]}
                (root / f"{labels}polygons.json").write_text(json.dumps(size))
        cfg = get_cfg_from(str(CONFIGS / "mic_gauss.yaml"), [*self.size, "MODEL.DEVICE", "cpu"])
        weights = build_model(cfg).backbone.state_dict()
        torch.save(
            {"model": {f"backbone.{k}": v for k, v in weights.items()}}, root / "encoder.pth"
        )
        return root

    def train(self, name: str, output: Path, *opts: str) -> list[dict]:
        """A training of tools/train_net.py on :meth:`data`; the lines of its metrics.json."""
        data = self.data()
        command = [sys.executable, "tools/train_net.py", "--config-file"]
        command += [str(CONFIGS / f"{name}.yaml"), "--resume", *self.size]
        command += ["MODEL.DEVICE", self.device, "MODEL.WEIGHTS", str(data / "encoder.pth")]
        command += ["DATASETS.TEST", "()", "VIS_PERIOD", "0", "OUTPUT_DIR", str(output)]
        command += ["DATALOADER.RARE_CLASS.MIN_CROP_FRACTION", "0.0"]
        subprocess.run([*command, *opts], cwd=ROOT, check=True)
        return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def _scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
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


def train(stage: Stage) -> Figures:
    """The best model's training at full size, through the start of its prototypes."""
    iterations, start, period = (6, 2, 1) if stage.tiny else (80, 20, 10)
    opts = ["SOLVER.MAX_ITER", iterations, "PROTOTYPES.INIT.ITER", start, "LOG_PERIOD", period]
    opts += ["PROTOTYPES.INIT.MIN_SAMPLES", 1]
    lines = stage.train("mic_gauss", stage.folder / "training", *map(str, opts))
    losses = {k: v for k, v in lines[-1].items() if k.startswith("loss_")}
    if not all(math.isfinite(value) for value in losses.values()) or lines[-1]["skipped_steps"]:
        raise RuntimeError(f"a loss is not finite, or steps were skipped: {lines[-1]}")
    if not lines[-1]["prototypes/started"]:
        raise RuntimeError("no prototype has started")
    memory = [value for k, value in lines[-1].items() if k.endswith("max_mem_MiB")]
    settled = [line for line in lines if line["iteration"] >= iterations / 2]
    return {
        "seconds an iteration": float(np.median([line["time"] for line in settled])),
        "of these, waiting for data": float(np.median([line["data_time"] for line in settled])),
        "peak memory, MiB": max(memory),
        **losses,
    }


def step(stage: Stage) -> Figures:
    """A step with and without prototypes; what the GPU and the host do in it."""
    trainers = stage.trainer("mic_gauss"), stage.trainer("mic_gauss", "PROTOTYPES.TYPE", "none")
    seconds = stage.seconds(*trainers)
    figures: Figures = {"seconds": seconds[0], "seconds without prototypes": seconds[1]}
    if stage.device == "cuda":
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
            trainers[0].step_once()
            torch.cuda.synchronize()
        events = recorded.key_averages()
        figures["seconds of kernels"] = sum(e.self_device_time_total for e in events) / 1e6
        launches = [e.count for e in events if "LaunchKernel" in e.key]
        figures["kernels launched"] = sum(launches)
        (stage.folder / "step_kernels.txt").write_text(
            events.table(sort_by="self_device_time_total", row_limit=40)
        )
    return figures


def peaks(stage: Stage) -> Figures:
    """The most memory of a step, MiB."""
    figures: Figures = {}
    for name in ("mic_gauss", "mic_gauss_16gb"):
        trainer = stage.trainer(name)
        if stage.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            trainer.step_once()
            figures[name] = torch.cuda.max_memory_allocated() / 2**20
            figures[f"{name}, reserved"] = torch.cuda.max_memory_reserved() / 2**20
            del trainer
            torch.cuda.empty_cache()
        else:
            calls = {name: trainer.step_once}
            figures[name] = compare(calls, device="cpu", repeats=1)[name].mebibytes
    return figures


def precision(stage: Stage) -> Figures:
    """Seconds of a DAFormer step with Gaussians: half precision, float32, compiled."""
    kinds = {"bfloat16": ["SOLVER.AMP.ENABLED", "True"], "float32": ["SOLVER.AMP.ENABLED", "False"]}
    if not stage.tiny:
        kinds["bfloat16, compiled"] = [*kinds["bfloat16"], "MODEL.COMPILE", "True"]
    trainers = [stage.trainer("daformer_gauss", *opts) for opts in kinds.values()]
    return dict(zip(kinds, stage.seconds(*trainers)))


def resume(stage: Stage) -> Figures:
    """A run that goes on from its middle ends as the one that was not stopped."""
    whole, resumed = stage.folder / "whole", stage.folder / "resumed"
    opts = ["SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "3", "LOG_PERIOD", "1"]
    opts += ["PROTOTYPES.INIT.ITER", "1", "PROTOTYPES.INIT.MIN_SAMPLES", "1"]
    opts += ["SOLVER.DETERMINISTIC", "True"]
    stage.train("daformer_gauss", whole, *opts)
    shutil.copytree(whole, resumed)
    (resumed / "model_final.pth").unlink()
    for checkpoint in sorted(resumed.glob("model_*.pth"))[1:]:
        checkpoint.unlink()
    (resumed / "last_checkpoint").write_text("model_0000002.pth")
    stage.train("daformer_gauss", resumed, *opts)
    ends = [torch.load(folder / "model_final.pth", "cpu") for folder in (whole, resumed)]
    flat = [dict(_tensors(end)) for end in ends]
    different = [name for name, value in flat[0].items() if not torch.equal(value, flat[1][name])]
    if different or flat[0].keys() != flat[1].keys():
        raise RuntimeError(f"{len(different)} of {len(flat[0])} differ: {different[:5]}")
    return {"equal tensors": len(flat[0])}


def _tensors(node: object, name: str = ""):
    if isinstance(node, torch.Tensor):
        yield name, node
    elif isinstance(node, (dict, list, tuple)):
        items = node.items() if isinstance(node, dict) else enumerate(node)
        for key, value in items:
            yield from _tensors(value, f"{name}.{key}")


def evaluation(stage: Stage) -> Figures:
    """Scores as on the CPU; seconds an image of the best model."""
    stage.data()
    exact = ["TEST.AMP", "False"]
    small = ["MODEL.MIT.VARIANT", "b0", "MODEL.WEIGHTS", "''", *exact]
    matrices, figures = [], {}
    for device in dict.fromkeys((stage.device, "cpu")):
        matrices.append(_evaluate(stage, "source_only", device, *small)[0])
    differ = np.abs(matrices[0] - matrices[-1]).sum() / 2 / matrices[0].sum()
    if differ > 1e-3:
        raise RuntimeError(f"{differ:.2%} of the pixels are classified otherwise than on the CPU")
    figures["share of pixels other than on the CPU"] = float(differ)
    for name, opts in {"bfloat16": [], "float32": exact}.items():
        figures[f"seconds an image, {name}"] = _evaluate(stage, "mic_gauss", stage.device, *opts)[1]
    return figures


def _evaluate(stage: Stage, name: str, device: str, *opts: str) -> tuple[np.ndarray, float]:
    where = ["MODEL.DEVICE", device, "DATALOADER.NUM_WORKERS", "2", *opts]
    cfg = get_cfg_from(str(CONFIGS / f"{name}.yaml"), [*stage.size, *where])
    torch.manual_seed(0)
    network = build_model(cfg).eval()
    dataset = cfg.DATASETS.TEST[0]
    evaluator = SegmentationEvaluator(dataset)
    evaluator.reset()
    begin = time.perf_counter()
    with torch.no_grad():
        for records in build_test_loader(cfg, dataset):
            evaluator.process(records, network(records))
    seconds = time.perf_counter() - begin
    evaluator.evaluate()
    return evaluator.confusion, seconds / len(DatasetCatalog.get(dataset))


def predictor(stage: Stage) -> Figures:
    """Images a second, from an array to its labels."""
    where = ["MODEL.DEVICE", stage.device]
    cfg = get_cfg_from(str(CONFIGS / "mic_gauss.yaml"), [*stage.size, *where])
    weights = stage.folder / "network.pth"
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    predict = Predictor(cfg, weights)
    images = [_scene(i, *((64, 128) if stage.tiny else (1024, 2048)))[0] for i in range(4)]
    predict.labels(images[0])
    seconds, _ = measure(lambda: predict.labels(images), stage.device)
    weights.unlink()
    return {"images a second": len(images) / seconds}


def clustering(stage: Stage) -> Figures:
    """Seconds of the K-means that starts the prototypes."""
    figures: Figures = {}
    size, dim = (200, 16) if stage.tiny else (20_000, 256)
    for classes in (19, 150):
        points = torch.randn(classes, size, dim, device=stage.device, dtype=torch.float16)
        valid = torch.ones(classes, size, dtype=torch.bool, device=stage.device)
        kmeans(points[:, :100], valid[:, :100], 5, seed=0)
        figures[f"{classes} classes"], _ = measure(
            lambda p=points, v=valid: kmeans(p, v, 5, seed=0), stage.device
        )
    return figures


STAGES: dict[str, Callable[[Stage], Figures]] = {
    function.__name__: function
    for function in (
        *(train, step, peaks, precision, resume),
        *(evaluation, predictor, clustering),
    )
}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(words)
    figures = STAGES[args.stage](Stage(args.folder.resolve(), args.device, args.tiny))
    text = json.dumps(figures, indent=2) + "\n"
    (args.folder / f"{args.stage}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
