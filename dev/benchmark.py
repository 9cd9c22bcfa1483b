#!/usr/bin/env python
"""Measures where time and memory go, always against a baseline in the same run.

  python dev/benchmark.py step                      # a training step with and without prototypes
  python dev/benchmark.py step --config-file projects/MPCL/configs/daformer_gauss.yaml
  python dev/benchmark.py backbone --variants b0 b5
  python dev/benchmark.py sinkhorn --json docs/benchmarks/cpu/sinkhorn.json

Variants take turns, medians are compared. The defaults take about a minute on two cores. On a GPU
(--device cuda, the default where there is one) times are of CUDA events.
"""

import argparse
from pathlib import Path

import torch
from benchmarks import backbone, evaluate, inference, loader, sinkhorn, step, timing

from mpcl.utils.host_memory import keep_freed_memory

COMMANDS = {
    "step": step,
    "backbone": backbone,
    "sinkhorn": sinkhorn,
    "loader": loader,
    "inference": inference,
    "evaluate": evaluate,
}


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, module in COMMANDS.items():
        command = commands.add_parser(
            name,
            help=module.__doc__.splitlines()[0],
            description=module.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        module.add_arguments(command)
        default = "cuda" if torch.cuda.is_available() else "cpu"
        command.add_argument("--device", default=default, help="cpu or cuda")
        command.add_argument("--json", type=Path, metavar="FILE", help="write the rows there")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    if args.device == "cpu":
        keep_freed_memory()  # as in training; it serves both sides of a comparison
    timing.report(COMMANDS[args.command].run(args), args.json)


if __name__ == "__main__":
    main()
