#!/usr/bin/env python3
"""Checks data sets file by file: pairs, sizes, modes, ids, and the share of every class.

Examples:
  python tools/check_data.py gta5_sem_seg_train cityscapes_images_train
  python tools/check_data.py --file datasets/examples/leaves.yaml      # all sets of the file
  python tools/check_data.py --list                                    # the registered names

Exit status: 0 if all files are fit for training and evaluation, 1 if there is any fault.
Data sets are found below $DETECTRON2_DATASETS (default: datasets); see datasets/README.md.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from command_line import command_line, make_parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("names", nargs="*", metavar="DATASET", help="registered names")
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="YAML",
        help="description of your own data; without names, all its sets are checked; repeatable",
    )
    parser.add_argument("--list", action="store_true", help="show the registered names and stop")
    parser.add_argument(
        "--workers",
        type=int,
        default=min(16, os.cpu_count() or 1),
        help="files to read side by side (default: %(default)s)",
    )
    parsed = parser.parse_args(argv)
    if not (parsed.names or parsed.file or parsed.list):
        parser.error("name a data set, or give --file or --list")
    return parsed


def check(name: str, num_workers: int) -> bool:
    """Prints the report of one set.

    Returns: whether it is free of faults.
    """
    from detectron2.data import DatasetCatalog

    from mpcl.data.sets.checking import check_dataset, summary

    if name not in DatasetCatalog:
        print(
            f"FAULT {name!r} is no registered data set; --list shows the names, and --file takes "
            "the description of your own data"
        )
        return False
    try:
        report = check_dataset(name, num_workers)
    except (FileNotFoundError, ValueError, AssertionError) as error:  # Detectron2's own sets assert
        print(f"FAULT {name}: {error}")
        return False
    print(summary(report), end="\n\n")
    return not report.faults


@command_line(parse_args)
def main(args: argparse.Namespace) -> int:
    from mpcl.data.sets.custom import register_from_yaml
    from mpcl.data.sets.registration import registered_names

    own: list[str] = []
    for file in args.file:
        try:
            own += register_from_yaml(file)
        except (FileNotFoundError, ValueError) as error:
            print(f"FAULT {error}")
            return 1
    if args.list:
        print("\n".join(registered_names()))
        return 0
    faultless = [check(name, args.workers) for name in args.names or own]
    return 0 if all(faultless) else 1


if __name__ == "__main__":
    sys.exit(main())
