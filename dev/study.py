#!/usr/bin/env python
"""Repeats the small-scale study of docs/RESULTS.md: a ladder of methods and the paper's ablations.

  python dev/study.py streets                     # all of it: hours on two cores
  python dev/study.py camvid --part ladder --jobs 2
  python dev/study.py streets --only daformer daformer_gauss K1 --seeds 0 1 2
  python dev/study.py streets --list              # the commands, without running any

The encoder is trained on ImageNet (docs/BACKBONES.md). All runs go on from a common start, trained
on the source alone; without feature distance, which would compare with that start. Runs of one
scale go on from `start`; runs at two scales (MIC and its control) from `start_two_scales`, the same
network trained further on the source at both. source_only is the baselines' recipe;
source_only_balanced and source_only_two_scales are DAFormer and HRDA without self-training, with
their rare-class sampling.

Each run is one call of tools/run_seeds.py: run the same command again after a stop, finished runs
are skipped, started ones resumed. It ends with the tables of tools/compare.py.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mpcl.evaluation.runs import read_experiments
from mpcl.evaluation.tables import compare, report

TOOLS = Path(__file__).resolve().parents[1] / "tools"
CONFIGS = TOOLS.parent / "projects" / "MPCL" / "configs"
START, START_TWO_SCALES = "start", "start_two_scales"
# Iterations of the common start, of its continuation at two scales, and of the runs.
START_ITERATIONS, START_TWO_SCALES_ITERATIONS, RUN_ITERATIONS = 800, 1600, 3000
# What is trained on the target's labels, where there are any: the ceiling.
BENCHMARKS = {"streets": (), "camvid": ("oracle",)}
ONE_SCALE = (
    "source_only",
    "source_only_balanced",
    "daformer",
    "daformer_centroid",
    "daformer_gauss",
)
TWO_SCALES = ("source_only_two_scales", "mic", "mic_gauss")
# These are a config of another name without its self-training.
SUPERVISED_PART = {
    START_TWO_SCALES: "hrda",
    "source_only_two_scales": "hrda",
    "source_only_balanced": "daformer",
}
# Of daformer_gauss; the paper's tables in brackets, whose sizes are others.
ABLATIONS = {
    "contrast_only": ("PROTOTYPES.CONSISTENCY_WEIGHT", "0.0"),  # (IV)
    "consistency_only": ("PROTOTYPES.CONTRAST_WEIGHT", "0.0"),
    "no_in_class_negatives": ("PROTOTYPES.IN_CLASS_NEGATIVES", "False"),  # (VI)
    "shared_head": ("PROTOTYPES.HEAD", "shared"),
    "source_and_mixed_contrast": ("PROTOTYPES.CONTRAST_VIEWS", "('source', 'mixed')"),
    "source_contrast": ("PROTOTYPES.CONTRAST_VIEWS", "('source',)"),  # (VII)
    "target_contrast": ("PROTOTYPES.CONTRAST_VIEWS", "('target',)"),
    "K1": ("PROTOTYPES.NUM_PER_CLASS", "1"),  # (IX)
    "K3": ("PROTOTYPES.NUM_PER_CLASS", "3"),
    "K10": ("PROTOTYPES.NUM_PER_CLASS", "10"),
    "weights_0.5": (  # both; (X) moves one at a time
        *("PROTOTYPES.CONTRAST_WEIGHT", "0.5"),
        *("PROTOTYPES.CONSISTENCY_WEIGHT", "0.5"),
    ),
    "bank_500": ("PROTOTYPES.BANK.SIZE", "500"),  # (XI)
    "bank_8000": ("PROTOTYPES.BANK.SIZE", "8000"),
    "momentum_0.9": ("PROTOTYPES.MOMENTUM", "0.9"),
    "momentum_0.999": ("PROTOTYPES.MOMENTUM", "0.999"),
}


def groups(benchmark: str, part: str) -> list[tuple[str, ...]]:
    """Experiments that are compared with each other, each group with its first."""
    ladder = [(*ONE_SCALE, *BENCHMARKS[benchmark]), TWO_SCALES]
    ablations = [("daformer_gauss", "daformer", *ABLATIONS)]
    return {"ladder": ladder, "ablations": ablations, "all": ladder + ablations}[part]


def experiments(benchmark: str) -> list[str]:
    return list(dict.fromkeys(name for group in groups(benchmark, "all") for name in group))


def config_of(name: str) -> str:
    """Its file in the benchmark's folder, without the ending."""
    others = {START: "source_only", **SUPERVISED_PART, **dict.fromkeys(ABLATIONS, "daformer_gauss")}
    return others.get(name, name)


def options(name: str, args: argparse.Namespace, folder: Path) -> list[str]:
    """What a run sets differently from its config."""
    if name == START:
        balanced = ["DATALOADER.RARE_CLASS.ENABLED", "True"]
        return [*balanced, "SOLVER.MAX_ITER", str(START_ITERATIONS), "TEST.EVAL_PERIOD", "0"]
    start, iterations, period = START, args.iterations or RUN_ITERATIONS, 500
    if name == START_TWO_SCALES:
        iterations, period = START_TWO_SCALES_ITERATIONS, 400  # shows whether it has converged
    elif name in TWO_SCALES:
        start, period = START_TWO_SCALES, 1000  # inference takes long
    opts = ["MODEL.WEIGHTS", str(folder / start / "seed_0" / "model_final.pth")]
    opts += ["SOLVER.WARMUP_ITERS", "20", "PROTOTYPES.INIT.ITER", str(iterations // 10)]
    opts += ["SELF_TRAINING.FEATURE_DISTANCE.WEIGHT", "0.0"]
    opts += ["SOLVER.MAX_ITER", str(iterations), "TEST.EVAL_PERIOD", str(period)]
    opts += ["SELF_TRAINING.ENABLED", "False"] if name in SUPERVISED_PART else []
    return [*opts, *ABLATIONS.get(name, ())]


def command(name: str, seed: int, args: argparse.Namespace) -> list[str]:
    folder = args.output / args.benchmark
    file = CONFIGS / args.benchmark / f"{config_of(name)}.yaml"
    line = [sys.executable, str(TOOLS / "run_seeds.py"), "--config-file", str(file)]
    line += ["--seeds", str(seed), "--output", str(folder / name)]
    line += options(name, args, folder)
    return [*line, "PROTOTYPES.GRADIENT_SHARE_PERIOD", "50", "VIS_PERIOD", "0", *args.set]


def plan(args: argparse.Namespace) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The starts, which run one after the other, and the runs: seed by seed, so that a table can be
    made of what is there."""
    names = args.only or [name for group in groups(args.benchmark, args.part) for name in group]
    starts = [START, *([START_TWO_SCALES] if set(names) & set(TWO_SCALES) else [])]
    runs = [(name, seed) for seed in args.seeds for name in names]
    return [(name, 0) for name in starts], list(dict.fromkeys(runs))


def run(job: tuple[str, int], args: argparse.Namespace, at_once: int) -> int:
    """Trains one seed of one experiment on its part of the cores; what it says goes to a file
    beside the seeds."""
    name, seed = job
    log = args.output / args.benchmark / name / f"seed_{seed}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // at_once)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("w") as file:
        line = command(name, seed, args)
        status = subprocess.run(line, stdout=file, stderr=subprocess.STDOUT, env=environment)
    print(f"{name} seed {seed}: " + (f"FAILED, see {log}" if status.returncode else "done"))
    other_settings = [line for line in log.read_text().splitlines() if line.startswith("  BUT ")]
    print(*other_settings, sep="\n", end="\n" if other_settings else "", flush=True)
    return status.returncode


def tables(args: argparse.Namespace) -> str:
    """Of the experiments that have runs, group by group."""
    found = []
    for group in [args.only] if args.only else groups(args.benchmark, args.part):
        folders = [args.output / args.benchmark / name for name in group]
        runs = read_experiments([folder for folder in folders if any(folder.glob("*/config.yaml"))])
        found += [report(runs, compare(runs))] if runs else []
    return "\n\n".join(found)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--part", choices=("ladder", "ablations", "all"), default="all")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="some experiments of them")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, which share the cores (default: 1)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=TOOLS.parent / "output" / "study",
        help="default: output/study; each benchmark has a folder there",
    )
    parser.add_argument(
        "--iterations",
        type=int,
        help=f"of the runs, with another --output (default: {RUN_ITERATIONS})",
    )
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="config keys of every run and start; with another --output: finished runs are not "
        "run again",
    )
    args = parser.parse_args(argv)
    known = experiments(args.benchmark)
    if unknown := [name for name in args.only or () if name not in known]:
        parser.error(f"{args.benchmark} has no {unknown[0]}; expected some of {', '.join(known)}")
    if args.jobs < 1:
        parser.error(f"--jobs is {args.jobs}, expected at least 1")
    if args.iterations is not None and args.iterations < 1:
        parser.error(f"--iterations is {args.iterations}, expected at least 1")
    if len(args.set) % 2:
        parser.error(f"--set expects pairs of KEY and VALUE, got {len(args.set)} words")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    starts, runs = plan(args)
    if args.list:
        for job in (*starts, *runs):
            print(shlex.join(command(*job, args)))
        return 0
    # In threads, which Ctrl-C does not reach: the trainings, which it does, save before they end.
    with ThreadPoolExecutor(args.jobs) as pool:
        for job in starts:
            if pool.submit(run, job, args, at_once=1).result():
                return 1
        statuses = list(pool.map(lambda job: run(job, args, args.jobs), runs))
    print(tables(args))
    return int(any(statuses))


if __name__ == "__main__":
    raise SystemExit(main())
