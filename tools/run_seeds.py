#!/usr/bin/env python
"""Trains one config with several seeds, one after the other, and ends with their mean.

  python tools/run_seeds.py --config-file CONFIG --seeds 0 1 2 [--num-gpus N] [KEY VALUE ...]

Seed S trains in <output>/seed_S. Run the same command again after a stop: finished seeds are
skipped, started ones are resumed from their last checkpoint.
"""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from command_line import command_line, make_parser

TRAIN_NET = Path(__file__).resolve().parent / "train_net.py"


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--seeds", nargs="+", required=True, help="whole numbers")
    parser.add_argument(
        "--output", type=Path, help="folder of the seeds (default: OUTPUT_DIR of the config)"
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="GPUs of each run (default: 1)")
    # REMAINDER: values such as -1 are the config's, not ours.
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE")
    args = parser.parse_args(argv)
    words = args.seeds  # argparse gives it everything up to the next option
    args.seeds = [int(word) for word in takewhile(str.isdecimal, words)]
    args.opts = words[len(args.seeds) :] + args.opts
    if not args.seeds:
        parser.error(f"--seeds expects whole numbers, got {words[0]!r}")
    if {"SEED", "OUTPUT_DIR"} & set(args.opts[::2]):
        parser.error("SEED and OUTPUT_DIR are set here: use --seeds and --output")
    return args


def is_finished(folder: Path, cfg) -> bool:
    """Whether the seed is trained and evaluated to the config's last iteration.

    Says on the terminal if it was trained under other settings.
    """
    import yaml

    from mpcl.evaluation.runs import differences, read_run

    if not (folder / "model_final.pth").is_file() or not (folder / "config.yaml").is_file():
        return False
    run = read_run(folder)
    evaluated = run.scores is not None or not cfg.DATASETS.TEST
    done = run.iteration + (0 if cfg.DATASETS.TEST else 1)  # an evaluation counts one further
    if not evaluated or done < cfg.SOLVER.MAX_ITER:
        return False
    print(f"{folder} is finished")
    for key, (then, now) in differences(run.config, yaml.safe_load(cfg.dump())).items():
        print(f"  BUT it was trained with {key} {then}; the config now says {now}")
    return True


def command(args: argparse.Namespace, seed: int, folder: Path) -> list[str]:
    from mpcl.checkpoint.training import checkpoints_in

    started = (folder / "metrics.json").is_file() or checkpoints_in(folder)
    resume = ["--resume"] if started else []
    start = [sys.executable, str(TRAIN_NET), "--config-file", args.config_file, *resume]
    own = ["SEED", str(seed), "OUTPUT_DIR", str(folder)]
    return [*start, "--num-gpus", str(args.num_gpus), *args.opts, *own]


def run_to_its_end(line: Sequence[str]) -> int:
    """Exit status of a command. Ctrl-C reaches the command, too, which saves before it ends."""
    with subprocess.Popen(line) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                print("Waiting for the training to save; then it ends", file=sys.stderr)


@command_line(parse_args)
def main(args: argparse.Namespace) -> int:
    from mpcl.config import get_cfg_from
    from mpcl.evaluation.runs import read_experiments
    from mpcl.evaluation.tables import compare, report

    cfg = get_cfg_from(args.config_file, args.opts)
    output = args.output or Path(cfg.OUTPUT_DIR)
    if (output / "config.yaml").is_file():
        raise ValueError(f"{output} holds a run itself; name a folder of the seeds with --output")
    for seed in args.seeds:
        folder = output / f"seed_{seed}"
        if is_finished(folder, cfg):
            continue
        line = command(args, seed, folder)
        print(shlex.join(line), flush=True)
        status = run_to_its_end(line)
        if status:
            print(f"Failed with exit status {status}: {shlex.join(line)}", file=sys.stderr)
            return status
    experiments = read_experiments([output])
    print(report(experiments, compare(experiments)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
