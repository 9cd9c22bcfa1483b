#!/usr/bin/env python
"""Compares finished runs: mean and sample standard deviation over seeds, and paired differences.

  python tools/compare.py output/camvid/daformer output/camvid/daformer_gauss
  python tools/compare.py RUN_A RUN_B --per-class --csv comparison.csv > comparison.md

The network that each run is used with comes first, its teacher where it has one, else its student;
then student beside student.

A RUN is an output folder of tools/train_net.py, or a folder of several that differ in their seed
(RUN/seed_0, RUN/seed_1, ..., as tools/run_seeds.py makes them). Scores are those of the evaluation
after the last iteration; unfinished runs are named and left out. Differences are to the first RUN,
over the seeds that both have. Each data set has a table of its own, so validation and test never
share a column. What keeps runs from being comparable is said below the tables.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from command_line import command_line, make_parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+")
    parser.add_argument(
        "--metric",
        action="append",
        default=[],
        help="such as mIoU, mIoU-16, pACC, IoU-road; repeatable (default: all mean IoUs)",
    )
    parser.add_argument(
        "--network",
        choices=("teacher", "student"),
        help="this one alone (default: the one in use, then the student)",
    )
    parser.add_argument("--per-class", action="store_true", help="IoU of each class as well")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write all numbers there as well")
    return parser.parse_args(argv)


@command_line(parse_args)
def main(args: argparse.Namespace) -> None:
    from mpcl.evaluation.runs import read_experiments
    from mpcl.evaluation.tables import compare, report, write_csv

    experiments = read_experiments(args.runs)
    networks = [args.network] if args.network else []
    rows = compare(experiments, args.metric, networks, args.per_class)
    print(report(experiments, rows))
    if args.csv:
        write_csv(rows, args.csv)


if __name__ == "__main__":
    main()
