#!/usr/bin/env python
"""Trains twice through the same faults, once without a stop and once with many, and compares.

  python dev/soak.py [--steps N] [--stops N] [--nans N] [--corrupt N] [--output FOLDER]

Both runs see images of NaN in some iterations, and corrupt files among their images. The second is
stopped at random moments, in turn by SIGTERM and by SIGKILL, and resumed each time. They must end
in the same state to the last bit, with the same log. Memory and open files are watched in both.

Ends with a table, and soak.json in the output folder; status 1 where something is not as it should
be. docs/RELIABILITY.md has the figures of a long one. CPU; about a minute with the defaults.
"""

import argparse
import ctypes
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import torch
from detectron2.utils.env import seed_all_rng
from PIL import Image
from torch.utils._pytree import keystr, tree_flatten_with_path

from mpcl.config import get_cfg_from
from mpcl.engine import AdaptationTrainer

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "projects" / "MPCL" / "configs" / "mic_gauss.yaml"
FORKS = multiprocessing.get_context("forkserver")
WATCH_EVERY = 5  # steps between two looks at memory and open files
MAX_SLOPE = 2.0  # MiB of memory that 1000 steps may add, beyond twice the slope's standard error
IMAGES = 24  # of each domain
SMALL = {
    "MODEL.DEVICE": "cpu",
    "MODEL.WEIGHTS": "",
    "MODEL.BACKBONE.NAME": "build_timm_backbone",
    "MODEL.TIMM.NAME": "test_vit",  # the smallest encoder there is
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 16,
    "MODEL.SEM_SEG_HEAD.NUM_CLASSES": 4,
    "MODEL.HRDA.DETAIL_SIZE": (32, 32),
    "SELF_TRAINING.MASKED.BLOCK_SIZE": 16,
    "INPUT.SOURCE_SIZE": (96, 64),
    "INPUT.TARGET_SIZE": (96, 64),
    "INPUT.CROP.SIZE": (64, 64),
    "TEST.SLIDE.CROP": (64, 64),
    "TEST.SLIDE.STRIDE": (32, 32),
    "TEST.CLASS_SUBSETS": (),
    "TEST.EVAL_PERIOD": 0,
    "SOLVER.AMP.ENABLED": False,
    "SOLVER.WARMUP_ITERS": 20,
    "SOLVER.BASE_LR": 0.0002,
    "SOLVER.CHECKPOINT_KEEP": 3,
    "SELF_TRAINING.FEATURE_DISTANCE.WEIGHT": 0.0,
    "SELF_TRAINING.CONFIDENCE_THRESHOLD": 0.3,
    "PROTOTYPES.DIM": 16,
    "PROTOTYPES.NUM_PER_CLASS": 3,
    "PROTOTYPES.BANK.SIZE": 200,
    "PROTOTYPES.POOL_SIZE": 400,
    "PROTOTYPES.INIT.ITER": 10,
    "DATALOADER.NUM_WORKERS": 1,
    "DATALOADER.ON_BAD_FILE": "skip",
    "LOG_PERIOD": 10,
    "VIS_PERIOD": 0,
}


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=300, help="of each run (default: 300)")
    parser.add_argument("--stops", type=int, default=8, help="of the second run (default: 8)")
    parser.add_argument("--nans", type=int, default=6, help="spoilt iterations (default: 6)")
    parser.add_argument("--corrupt", type=int, default=3, help="truncated files (default: 3)")
    parser.add_argument("--checkpoint-period", type=int, default=10, help="steps (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="of runs and faults (default: 0)")
    parser.add_argument("--config-file", type=Path, default=CONFIG, help="default: mic_gauss.yaml")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "output" / "soak", help="default: output/soak"
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for both runs")
    args = parser.parse_args(argv)
    if args.steps < 2 or not 0 <= args.nans < args.steps or not 0 <= args.corrupt <= IMAGES // 2:
        parser.error(
            f"expected 2 steps or more, fewer NaNs than steps, at most {IMAGES // 2} files"
        )
    return args


def make_world(folder: Path, corrupt: int, seed: int) -> Path:
    """Two domains of striped noise, some files of them truncated; returns their description."""
    rng = np.random.default_rng(seed)
    for split, shift in (("source", 0), ("target", 40), ("val", 40)):
        for kind in ("images", "labels"):
            (folder / split / kind).mkdir(parents=True, exist_ok=True)
        for i in range(3 if split == "val" else IMAGES):
            label = np.repeat(rng.permutation(np.arange(12) % 4), 8).astype(np.uint8)
            label = np.broadcast_to(label, (64, 96))
            image = label[..., None] * 50 + shift + rng.integers(0, 40, (64, 96, 3))
            name = f"{i:02d}.png"
            Image.fromarray(image.astype(np.uint8)).save(folder / split / "images" / name)
            Image.fromarray(np.ascontiguousarray(label)).save(folder / split / "labels" / name)
    for i in range(corrupt):  # never the first, which is looked at before training starts
        kind = ("source/images", "target/images", "source/labels")[i % 3]
        file = folder / kind / f"{1 + i:02d}.png"
        file.write_bytes(file.read_bytes()[:100])
    description = folder / "soak.yaml"
    description.write_text(
        "name: soak\nclasses: [a, b, c, d]\nsplits:\n"
        "  train: {images: source/images, labels: source/labels}\n"
        "  target: {images: target/images}\n"
        "  val: {images: val/images, labels: val/labels}\n"
    )
    return description


def config(args: argparse.Namespace, name: str):
    sets = ["DATASETS.FILES", (str(args.output / "data" / "soak.yaml"),)]
    sets += ["DATASETS.TRAIN", ("soak_sem_seg_train",), "DATASETS.TEST", ("soak_sem_seg_val",)]
    sets += ["DATASETS.TRAIN_TARGET", ("soak_images_target",), "SEED", args.seed]
    run = ["SOLVER.MAX_ITER", args.steps, "SOLVER.CHECKPOINT_PERIOD", args.checkpoint_period]
    run += ["OUTPUT_DIR", str(args.output / name)]
    small = [word for pair in SMALL.items() for word in pair]
    cfg = get_cfg_from(str(args.config_file), [*sets, *small, *run, *args.opts])
    cfg.freeze()
    return cfg


def watch(pid: int) -> dict[str, float]:
    """Resident memory of this process and of its workers, MiB, and its open files."""
    ctypes.CDLL(None).malloc_trim(0)  # what is in use, not what the allocator keeps for later
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {
        "memory": resident(pid),
        "workers": sum(resident(int(child)) for child in children),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
    }


def resident(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def train(args: argparse.Namespace, name: str, spoilt: frozenset[int]) -> None:
    """In a process of its own: goes on from the newest checkpoint to the end."""
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers
    torch.set_num_threads(1)
    cfg = config(args, name)
    seed_all_rng(cfg.SEED)
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume=True)
    next_step, run_step = trainer.next_step, trainer.run_step

    def next_spoilt_step():
        step = next_step()
        if step.iteration in spoilt:
            images = (step.source if step.iteration % 2 else step.target).images
            images.fill_(float("nan"))
        return step

    def run_watched_step():
        run_step()
        if trainer.iter % WATCH_EVERY == 0:
            row = {"iteration": trainer.iter, "pid": os.getpid(), **watch(os.getpid())}
            with (args.output / f"{name}.jsonl").open("a") as file:
                file.write(json.dumps(row) + "\n")

    trainer.next_step, trainer.run_step = next_spoilt_step, run_watched_step
    trainer.train()


def start(args: argparse.Namespace, name: str, spoilt: frozenset[int]):
    process = FORKS.Process(target=train, args=(args, name, spoilt))
    process.start()
    return process


def run_with_stops(args: argparse.Namespace, spoilt: frozenset[int]) -> list[dict]:
    """Runs to the end, stopped on the way about every ``steps / stops`` iterations."""
    draw, stops = random.Random(args.seed), []
    watched = args.output / "stopped.jsonl"
    for number in range(args.stops):
        due = int((number + draw.uniform(0.2, 0.8)) * args.steps / args.stops)
        process = start(args, "stopped", spoilt)
        while process.is_alive() and last_iteration(watched) < due - WATCH_EVERY:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.5))
        how = signal.SIGKILL if number % 2 else signal.SIGTERM
        if process.is_alive():
            os.kill(process.pid, how)
        process.join()
        stops.append({"signal": how.name, "status": process.exitcode})
    process = start(args, "stopped", spoilt)
    process.join()
    return [*stops, {"signal": None, "status": process.exitcode}]


def train_both(args: argparse.Namespace, spoilt: frozenset[int]):
    """Side by side; returns the undisturbed run's process, which has ended, and the stops."""
    FORKS.set_forkserver_preload(["mpcl.engine"])
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        undisturbed = start(args, "undisturbed", spoilt)
        stops = run_with_stops(args, spoilt)
        undisturbed.join()
        return undisturbed, stops
    finally:
        for process in multiprocessing.active_children():
            process.kill()  # those that an end before the end has left behind
        signal.signal(signal.SIGTERM, before)


def rows(file: Path) -> list[dict]:
    lines = file.read_text().splitlines() if file.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def last_iteration(file: Path) -> int:
    return max((row["iteration"] for row in rows(file)), default=-1)


def slope(samples: list[dict], key: str) -> tuple[float, float]:
    """Units per 1000 steps, by least squares over the second half, and the standard error."""
    later = samples[len(samples) // 2 :]
    if len(later) < 4:
        return 0.0, 0.0
    at, values = ([row[k] for row in later] for k in ("iteration", key))
    fit, covariance = np.polyfit(at, values, 1, cov=True)
    return float(fit[0] * 1000), float(covariance[0, 0] ** 0.5 * 1000)


def differences(left: Path, right: Path) -> list[str]:
    """Names of what differs between two final checkpoints."""
    states = [torch.load(folder / "model_final.pth", weights_only=True) for folder in (left, right)]
    one, other = (
        {keystr(path): leaf for path, leaf in tree_flatten_with_path(state)[0]} for state in states
    )
    found = [n for n in one.keys() | other.keys() if not equal(one.get(n), other.get(n))]
    return sorted(found)


def equal(one, other) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return type(one) is type(other) and one == other


def report(args: argparse.Namespace, stops: list[dict], seconds: float) -> dict:
    undisturbed, stopped = (rows(args.output / f"{n}.jsonl") for n in ("undisturbed", "stopped"))
    final = torch.load(args.output / "stopped" / "model_final.pth", weights_only=True)
    steady = [row["files"] for row in undisturbed[len(undisturbed) // 4 :]]
    growth, error = slope(undisturbed, "memory")
    found = differences(args.output / "undisturbed", args.output / "stopped")
    return {
        "steps of each run": args.steps,
        "seconds": round(seconds),
        "stops by SIGTERM": sum(s["signal"] == "SIGTERM" and s["status"] == 75 for s in stops),
        "stops by SIGKILL": sum(s["status"] == -signal.SIGKILL for s in stops),
        "processes of the stopped run": len(stops),
        "skipped steps": final["trainer"]["guard"]["total"],
        "files skipped": len(final["trainer"]["hooks"].get("BadFiles", {})),
        "memory at the end, MiB": round(undisturbed[-1]["memory"], 1),
        "memory slope, MiB per 1000 steps": round(growth, 2),
        "its standard error": round(error, 2),
        "workers' memory slope, MiB per 1000 steps": round(slope(undisturbed, "workers")[0], 2),
        "open files after a quarter": steady[0],
        "open files, most after it": max(steady),
        "open files, most in a resumed process": max(row["files"] for row in stopped),
        "end states differ in": found,
    }


def failures(args: argparse.Namespace, figures: dict) -> list[str]:
    """What is not as it should be."""
    wrong = []
    if figures["end states differ in"]:
        wrong.append("the stopped run ended in another state")
    if figures["skipped steps"] != args.nans:
        wrong.append(f"{args.nans} steps were spoilt, {figures['skipped steps']} skipped")
    if figures["open files, most after it"] > figures["open files after a quarter"]:
        wrong.append("open files have grown")
    growth = figures["memory slope, MiB per 1000 steps"] - 2 * figures["its standard error"]
    if args.steps >= 200 and growth > MAX_SLOPE:  # before that, memory is still filling up
        wrong.append(f"memory grows by more than {MAX_SLOPE} MiB in 1000 steps")
    return wrong


def main(argv=None) -> int:
    args = parse_args(argv)
    get_cfg_from(str(args.config_file), args.opts)  # a mistake is better said here than by the runs
    begin = time.monotonic()
    for name in ("data", "undisturbed", "stopped"):
        shutil.rmtree(args.output / name, ignore_errors=True)
        (args.output / f"{name}.jsonl").unlink(missing_ok=True)
    make_world(args.output / "data", args.corrupt, args.seed)
    # Not in a row, so that the run goes on.
    spoilt = frozenset(random.Random(args.seed).sample(range(args.steps), args.nans))
    undisturbed, stops = train_both(args, spoilt)
    if undisturbed.exitcode or stops[-1]["status"]:
        print(f"A run failed: status {undisturbed.exitcode} and {stops}")
        return 1
    figures = report(args, stops, time.monotonic() - begin)
    wrong = failures(args, figures)
    content = {"figures": figures, "stops": stops, "failures": wrong}
    (args.output / "soak.json").write_text(json.dumps(content, indent=2) + "\n")
    width = max(map(len, figures))
    for name, value in figures.items():
        print(f"{name:{width}}  {value if value != [] else 'nothing'}")
    print("\n".join(["", *(f"FAILED: {fault}" for fault in wrong)]) if wrong else "\nAll is well.")
    return bool(wrong)


if __name__ == "__main__":
    raise SystemExit(main())
