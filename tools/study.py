#!/usr/bin/env python
"""Repeats the small-scale study of docs/RESULTS.md: a ladder of methods and the paper's ablations.

  python tools/study.py streets                     # all of it: hours on two cores
  python tools/study.py camvid --part ladder --jobs 2
  python tools/study.py streets --only daformer daformer_gauss K1 --seeds 0 1 2
  python tools/study.py streets --list              # the commands, without running any

All runs go on from a common start, trained on the source alone (in place of ImageNet weights), and
differ in the method and the seed only. The runs of one resolution start from `start`, HRDA and MIC
from `start_two_scales`, the same network trained further on the source at both scales. Each run is
one call of tools/run_seeds.py: run the same command again after a stop, finished runs are skipped,
started ones resumed. It ends with the tables of tools/compare.py.
"""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from mpcl.reporting import compare, report
from mpcl.runs import read_experiments
from mpcl.utils.cli import add_debug_option, command_line

TOOLS = Path(__file__).resolve().parent
CONFIGS = TOOLS.parent / "projects" / "MPCL" / "configs"
STARTS = ("start", "start_two_scales")


class Budget(NamedTuple):
    """Iterations of the common start, of its continuation at two scales, and of the runs."""

    start: int
    two_scales: int
    one_scale_run: int
    two_scale_run: int


BUDGETS = {
    "streets": Budget(4000, 300, 300, 200),
    "camvid": Budget(4000, 300, 300, 100),
}
LADDER = (
    "source_only",
    "daformer",
    "daformer_centroid",
    "daformer_gauss",
    "source_only_two_scales",
    "mic",
    "mic_gauss",
)
# Trained on the target's labels, where there are any: the ceiling.
CEILING = {"streets": (), "camvid": ("oracle",)}
# Of daformer_gauss; the paper's tables in brackets.
ABLATIONS = {
    "K1": ("PROTOTYPES.NUM_PER_CLASS", "1"),  # (IX)
    "K3": ("PROTOTYPES.NUM_PER_CLASS", "3"),
    "K10": ("PROTOTYPES.NUM_PER_CLASS", "10"),
    "contrast_only": ("PROTOTYPES.CONSISTENCY_WEIGHT", "0.0"),  # (IV)
    "consistency_only": ("PROTOTYPES.CONTRAST_WEIGHT", "0.0"),
    "weights_0.5": (  # (X)
        *("PROTOTYPES.CONTRAST_WEIGHT", "0.5"),
        *("PROTOTYPES.CONSISTENCY_WEIGHT", "0.5"),
    ),
    "no_in_class_negatives": ("PROTOTYPES.IN_CLASS_NEGATIVES", "False"),  # (VI)
    "source_contrast": ("PROTOTYPES.CONTRAST_VIEWS", "('source',)"),  # (VII)
    "target_contrast": ("PROTOTYPES.CONTRAST_VIEWS", "('target',)"),
    "bank_500": ("PROTOTYPES.BANK.SIZE", "500"),  # (XI)
    "bank_8000": ("PROTOTYPES.BANK.SIZE", "8000"),
    "momentum_0.9": ("PROTOTYPES.MOMENTUM", "0.9"),
    "momentum_0.999": ("PROTOTYPES.MOMENTUM", "0.999"),
    "batch_clustering": ("PROTOTYPES.CLUSTER_POOL", "batch"),  # the literal (13)
}


def is_two_scale(name: str) -> bool:
    return name in ("start_two_scales", "source_only_two_scales", "mic", "mic_gauss")


def options(name: str, benchmark: str, folder: Path) -> tuple[str, list[str]]:
    """The config of an experiment, by its name, and what is set differently."""
    budget = BUDGETS[benchmark]
    if name == "start":
        opts = ["DATALOADER.RARE_CLASS.ENABLED", "True", "SOLVER.MAX_ITER", str(budget.start)]
        return "source_only", opts
    config = {"source_only_two_scales": "hrda", "start_two_scales": "hrda"}.get(name, name)
    iterations = budget.two_scale_run if is_two_scale(name) else budget.one_scale_run
    start = STARTS[is_two_scale(name)]
    opts = ["SOLVER.BASE_LR", "0.001", "SOLVER.WARMUP_ITERS", "20", "PROTOTYPES.INIT.ITER", "50"]
    if name == "start_two_scales":
        iterations, start = budget.two_scales, "start"
    if config == "hrda":  # the supervised part of it
        opts += ["SELF_TRAINING.ENABLED", "False"]
    if name in ABLATIONS:
        config = "daformer_gauss"
        opts += ABLATIONS[name]
    weights = folder / start / "seed_0" / "model_final.pth"
    return config, ["MODEL.WEIGHTS", str(weights), *opts, "SOLVER.MAX_ITER", str(iterations)]


def command(name: str, seed: int, args: argparse.Namespace) -> list[str]:
    folder = args.output / args.benchmark
    config, opts = options(name, args.benchmark, folder)
    # Curves are of the ladder; inference at two scales takes too long to look more than once.
    period = "100" if name in LADDER and not is_two_scale(name) else "0"
    common = ["TEST.EVAL_PERIOD", period, "PROTOTYPES.GRADIENT_SHARE_PERIOD", "50"]
    common += ["VIS_PERIOD", "0", *args.set]
    file = CONFIGS / args.benchmark / f"{config}.yaml"
    line = [sys.executable, str(TOOLS / "run_seeds.py"), "--config-file", str(file)]
    return [*line, "--seeds", str(seed), "--output", str(folder / name), *opts, *common]


def chosen(args: argparse.Namespace) -> list[str]:
    if args.only:
        return args.only
    # Differences are to the first of a table: the whole method, in that of the ablations.
    ablations = ("daformer_gauss", "daformer", *ABLATIONS)
    ladder = (*LADDER, *CEILING[args.benchmark])
    parts = {"ladder": ladder, "ablations": ablations, "all": (*ladder, *ABLATIONS)}
    return list(parts[args.part])


def plan(args: argparse.Namespace) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """The starts, which run one after the other, and the runs: seed by seed, so that a table can be
    made of what is there."""
    names = chosen(args)
    starts = [STARTS[0], *(STARTS[1:] if any(map(is_two_scale, names)) else ())]
    runs = [(name, seed) for seed in args.seeds for name in names]
    return [(name, 0) for name in starts], runs


def run(job: tuple[str, int], args: argparse.Namespace, at_once: int) -> int:
    """Trains one seed of one experiment on its part of the cores; what it says goes to a file
    beside the seeds."""
    name, seed = job
    line = command(name, seed, args)
    log = args.output / args.benchmark / name / f"seed_{seed}.txt"
    log.parent.mkdir(parents=True, exist_ok=True)
    threads = max(1, (os.cpu_count() or 1) // at_once)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    with log.open("a") as file:
        status = subprocess.run(
            line, stdout=file, stderr=subprocess.STDOUT, env=environment
        ).returncode
    print(f"{name} seed {seed}: " + (f"FAILED, see {log}" if status else "done"), flush=True)
    return status


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("benchmark", choices=BUDGETS)
    parser.add_argument("--part", choices=("ladder", "ablations", "all"), default="all")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=(*LADDER, *CEILING["camvid"], *ABLATIONS),
        metavar="NAME",
        help="some experiments",
    )
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
    parser.add_argument("--list", action="store_true", help="print the commands and run none")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY VALUE", help="config keys of every run"
    )
    add_debug_option(parser)
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    starts, runs = plan(args)
    if args.list:
        for job in (*starts, *runs):
            print(shlex.join(command(*job, args)))
        return 0
    for job in starts:
        if run(job, args, at_once=1):
            return 1
    with ThreadPoolExecutor(args.jobs) as pool:
        failed = [
            job for job, bad in zip(runs, pool.map(lambda j: run(j, args, args.jobs), runs)) if bad
        ]
    folders = [args.output / args.benchmark / name for name in chosen(args)]
    experiments = read_experiments(
        [folder for folder in folders if any(folder.glob("*/config.yaml"))]
    )
    print(report(experiments, compare(experiments)))
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
