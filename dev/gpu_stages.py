#!/usr/bin/env python
"""What tools/gpu_check.py measures, one stage in a process:

  python dev/gpu_stages.py STAGE --folder DIR [--device cuda] [--tiny]

Writes the stage's figures to DIR/STAGE.json. Without --tiny a stage takes the sizes of the paper.
"""

import argparse
import gc
import json
import math
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from benchmarks import backbone, evaluate, sinkhorn
from benchmarks.driving_sets import street_blocks, write_driving_sets
from benchmarks.step import CONFIGS, SyntheticTrainer, build
from benchmarks.timing import compare, measure
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import keystr, tree_flatten_with_path

from mpcl import Predictor
from mpcl.config import get_cfg_from
from mpcl.data.build import build_test_loader
from mpcl.engine.job import run_job
from mpcl.evaluation.evaluator import SegmentationEvaluator
from mpcl.modeling.dilated_conv import DilatedDepthwiseConv
from mpcl.prototypes.kmeans import kmeans

TINY = ["MODEL.MIT.VARIANT", "b0", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16", "PROTOTYPES.DIM", "16"]
TINY += ["INPUT.CROP.SIZE", "(64, 64)", "MODEL.HRDA.DETAIL_SIZE", "(32, 32)"]
TINY += ["INPUT.SOURCE_SIZE", "(160, 96)", "INPUT.TARGET_SIZE", "(128, 64)"]
TINY += ["SELF_TRAINING.MASKED.BLOCK_SIZE", "16", "PROTOTYPES.BANK.SIZE", "400"]
TINY += ["TEST.SLIDE.CROP", "(64, 64)", "TEST.SLIDE.STRIDE", "(32, 32)"]
TINY += ["SOLVER.IMS_PER_BATCH", "1"]
TINY += ["SOLVER.AMP.ENABLED", "False", "DATALOADER.NUM_WORKERS", "0"]
# At this size a cell of the feature distance is the whole crop, which no thing dominates.
TINY += ["SELF_TRAINING.FEATURE_DISTANCE.CLASSES", str(tuple(range(19)))]
TINY += ["SELF_TRAINING.FEATURE_DISTANCE.MIN_RATIO", "0.01"]
LOSSES = ("sem_seg", "sem_seg_mix", "sem_seg_masked", "feature_distance", "contrast", "consistency")
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
        if self.tiny:
            return [measure(trainer.step_once, self.device)[0] for trainer in trainers]
        calls = {str(number): trainer.step_once for number, trainer in enumerate(trainers)}
        samples = compare(calls, device=self.device, repeats=5)
        return [sample.seconds for sample in samples.values()]

    def data(self) -> Path:
        """GTA5 and Cityscapes in the formats that training reads, and random ImageNet weights."""
        root = self.folder / "data"
        if root.exists():
            return root
        sizes = ((96, 160), (64, 128)) if self.tiny else ((1052, 1914), (1024, 2048))
        write_driving_sets(root, *sizes)
        cfg = get_cfg_from(str(CONFIGS / "mic_gauss.yaml"), [*self.size, "MODEL.DEVICE", "cpu"])
        weights = build_model(cfg).backbone.state_dict()
        torch.save(
            {"model": {f"backbone.{k}": v for k, v in weights.items()}}, root / "encoder.pth"
        )
        return root

    def train(self, name: str, output: Path, *opts: str) -> list[dict]:
        """A job of tools/train_net.py on :meth:`data`; the lines of its metrics.json."""
        weights = str(self.data() / "encoder.pth")
        words = [*self.size, "MODEL.DEVICE", self.device, "MODEL.WEIGHTS", weights]
        words += ["DATASETS.TEST", "()", "VIS_PERIOD", "0", "OUTPUT_DIR", str(output)]
        words += ["DATALOADER.RARE_CLASS.MIN_CROP_FRACTION", "0.0", *opts]
        args = {"config_file": str(CONFIGS / f"{name}.yaml"), "opts": words}
        args |= dict.fromkeys(("eval_only", "overwrite", "debug"), False)
        args |= {"num_gpus": 1, "num_machines": 1, "machine_rank": 0, "dist_url": "auto"}
        run_job(Namespace(resume=True, **args))
        gc.collect()  # its networks leave the device before others come
        torch.use_deterministic_algorithms(False)  # which a job turns on for its process
        torch.backends.cudnn.deterministic = False
        return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def train(stage: Stage) -> Figures:
    """The best model's training at full size, through the start of its prototypes."""
    iterations, start, period = (4, 1, 1) if stage.tiny else (80, 20, 10)
    opts = ["SOLVER.MAX_ITER", iterations, "PROTOTYPES.INIT.ITER", start, "LOG_PERIOD", period]
    opts += ["PROTOTYPES.INIT.MIN_SAMPLES", 1]
    # So young a teacher is sure of nothing: the masked view would weigh nothing.
    opts += ["SELF_TRAINING.CONFIDENCE_THRESHOLD", 0.0]
    lines = stage.train("mic_gauss", stage.folder / "training", *map(str, opts))
    losses = {f"loss_{name}": lines[-1].get(f"loss_{name}", math.nan) for name in LOSSES}
    if not all(0 < value < math.inf for value in losses.values()) or lines[-1]["skipped_steps"]:
        raise RuntimeError(f"a loss is not positive and finite, or steps were skipped: {lines[-1]}")
    if not lines[-1]["prototypes/started"]:
        raise RuntimeError("no prototype has started")
    settled = [line for line in lines if line["iteration"] >= iterations / 2]
    return {
        "seconds an iteration": float(np.median([line["time"] for line in settled])),
        "of these, waiting for data": float(np.median([line["data_time"] for line in settled])),
        **{name: value for name, value in lines[-1].items() if name.endswith("_MiB")},
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
    """Seconds of a DAFormer step with Gaussians: half precision, float32, compiled, and with the
    fastest of cuDNN's convolutions. (Tiny: traced by the compiler, not compiled.)"""
    half = ["SOLVER.AMP.ENABLED", "True"]
    kinds = {"bfloat16": half, "float32": ["SOLVER.AMP.ENABLED", "False"]}
    kinds["bfloat16, compiled"] = [*half, "MODEL.COMPILE", "True"]
    with patch.object(nn.Module, "compile", _trace if stage.tiny else nn.Module.compile):
        trainers = [stage.trainer("daformer_gauss", *opts) for opts in kinds.values()]
    figures: Figures = dict(zip(kinds, stage.seconds(*trainers)))
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        (figures["bfloat16, CUDNN_BENCHMARK"],) = stage.seconds(trainers[0])
    return figures


def _trace(module: nn.Module, **options) -> None:
    module._compiled_call_impl = torch.compile(module._call_impl, backend="eager", **options)


def convolutions(stage: Stage) -> Figures:
    """Milliseconds, forward and backward, of ways to compute the step's depth-wise convolutions:
    those of MiT-B5's blocks on the main forward's images, and of the head."""
    shapes = [(8, 256, 128, 1), (8, 512, 64, 1), (8, 1280, 32, 1), (8, 2048, 16, 1)]
    shapes += [(2, 1024, 128, dilation) for dilation in (6, 12, 18)]
    dtype, figures = torch.float32 if stage.device == "cpu" else torch.bfloat16, {}
    for batch, channels, side, dilation in shapes:
        channels, side = (16, 16) if stage.tiny else (channels, side)
        convolution = DilatedDepthwiseConv(channels, dilation).to(stage.device, dtype)
        grid = torch.randn(batch, channels, side, side, device=stage.device, dtype=dtype)
        grid = grid.to(memory_format=torch.channels_last).requires_grad_()
        dense = grid.detach().contiguous().requires_grad_()
        plain = partial(nn.Conv2d.forward, convolution)
        ways = {
            "cuDNN": (plain, grid, {}),
            "cuDNN's fastest": (plain, grid, {"benchmark": True}),
            "cuDNN, channels first": (plain, dense, {}),
            "torch, channels first": (plain, dense, {"enabled": False}),
            "phases": (convolution.by_phases, grid, {}),
        }
        calls = {name: partial(_there_and_back, *way) for name, way in ways.items()}
        samples = compare(calls, device=stage.device, repeats=1 if stage.tiny else 9)
        where = f"{batch}x{channels}x{side}x{side}, dilation {dilation}"
        figures |= {f"{where}: {name}": 1000 * s.seconds for name, s in samples.items()}
    return figures


def _there_and_back(convolve: Callable[[Tensor], Tensor], grid: Tensor, flags: dict) -> None:
    with torch.backends.cudnn.flags(**{"enabled": True, **flags}):
        result = convolve(grid)
        result.backward(result.detach())
    grid.grad = None


def resume(stage: Stage) -> Figures:
    """A run that goes on from its middle ends as the one that was not stopped: with the key for it
    to the last bit, else nearly. (Tiny: with the key; a CPU's bits are equal anyway.)

    Both are in one process, so the second has the first's workspace of cuBLAS, too.
    """
    figures: Figures = {}
    for deterministic in (True,) if stage.tiny else (True, False):
        whole, resumed = (_tensors(end) for end in _both_ends(stage, deterministic))
        different = [k for k, value in whole.items() if not torch.equal(value, resumed[k])]
        if deterministic and (different or whole.keys() != resumed.keys()):
            raise RuntimeError(f"{len(different)} of {len(whole)} differ: {different[:5]}")
        figures[f"different tensors, deterministic {deterministic}"] = len(different)
        weights = [k for k in whole if k.startswith("['model']") and whole[k].is_floating_point()]
        gaps = [_gap(resumed[k].double(), whole[k].double()) for k in weights]
        figures[f"largest difference of a weight, deterministic {deterministic}"] = max(gaps)
    return figures


def _gap(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).norm() / expected.norm().clamp_min(1e-12)).item()


def _both_ends(stage: Stage, deterministic: bool) -> list[dict]:
    """The last checkpoints of two runs, of which one has gone on from its middle."""
    whole, resumed = (stage.folder / f"{n}_{deterministic}" for n in ("whole", "resumed"))
    opts = ["SOLVER.MAX_ITER", "6", "SOLVER.CHECKPOINT_PERIOD", "3", "LOG_PERIOD", "1"]
    opts += ["PROTOTYPES.INIT.ITER", "1", "PROTOTYPES.INIT.MIN_SAMPLES", "1"]
    opts += ["SOLVER.DETERMINISTIC", str(deterministic)]
    stage.train("daformer_gauss", whole, *opts)
    shutil.copytree(whole, resumed)
    (resumed / "model_final.pth").unlink()
    for checkpoint in sorted(resumed.glob("model_*.pth"))[1:]:
        checkpoint.unlink()
    stage.train("daformer_gauss", resumed, *opts)
    return [torch.load(folder / "model_final.pth", "cpu") for folder in (whole, resumed)]


def _tensors(state: dict) -> dict[str, Tensor]:
    leaves = tree_flatten_with_path(state)[0]
    return {keystr(path): leaf for path, leaf in leaves if isinstance(leaf, Tensor)}


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
    images = [street_blocks(i, *((64, 128) if stage.tiny else (1024, 2048)))[0] for i in range(4)]
    predict.labels(images[0])
    seconds, _ = measure(lambda: predict.labels(images), stage.device)
    weights.unlink()
    return {"images a second": len(images) / seconds}


def parts(stage: Stage) -> Figures:
    """Seconds of the K-means that starts the prototypes and of a step's clustering; of the
    evaluator and of the encoder, over those of Detectron2's and transformers'."""
    figures: Figures = {}
    size, dim, pixels = (200, 16, 1000) if stage.tiny else (20_000, 256, 51_200)
    for classes in (19, 150):
        points = torch.randn(classes, size, dim, device=stage.device, dtype=torch.float16)
        valid = torch.ones(classes, size, dtype=torch.bool, device=stage.device)
        problem = sinkhorn.Problem(pixels, classes, 5, dim, stage.device)
        calls = {
            "K-means": lambda p=points, v=valid: kmeans(p, v, 5, seed=0),
            "step": lambda p=problem: sinkhorn.all_at_once(p),
        }
        samples = compare(calls, device=stage.device, repeats=1)
        figures |= {f"{name}, {classes} classes": s.seconds for name, s in samples.items()}
    common = {"device": stage.device, "repeats": 1 if stage.tiny else 5}
    rows = evaluate.run(Namespace(images=1 if stage.tiny else 4, **common))
    if find_spec("transformers"):
        variant, size = ("b0", 64) if stage.tiny else ("b5", 512)
        rows += backbone.run(Namespace(variants=[variant], size=size, batch=1, **common))
    return figures | {f"{r.name}, {r.unit}": r.ratio for r in rows if r.ratio is not None}


STAGES: dict[str, Callable[[Stage], Figures]] = {
    function.__name__: function
    for function in (
        *(train, step, peaks, precision, convolutions, resume),
        *(evaluation, predictor, parts),
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
