#!/usr/bin/env python
"""Writes one HTML file about one or several runs; it opens from the disk, without a network.

  python tools/report.py output/streets/daformer_gauss
  python tools/report.py output/streets/daformer output/streets/daformer_gauss --output compare.html
  python tools/report.py output/study/streets         # all runs below a folder

What was run (command, git state, versions, settings), curves, IoU of each class, confusion
matrices, predictions beside the ground truth, prototypes, timings and memory; several runs are
compared. Predictions and prototypes need the checkpoints and the data set; where these are missing,
or with --images 0, the rest is written. Needs pip install -e '.[report]'.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from command_line import command_line, make_parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("runs", metavar="OUTPUT_DIR", type=Path, nargs="+")
    parser.add_argument(
        "--output", type=Path, help="file to write (default: report.html in the first OUTPUT_DIR)"
    )
    parser.add_argument("--images", type=int, default=6, help="predicted (default: 6; 0: none)")
    parser.add_argument("--patches", type=int, default=3, help="of each prototype (default: 3)")
    parser.add_argument("--width", type=int, default=512, help="of pictures, at most (pixels)")
    return parser.parse_args(argv)


@command_line(parse_args)
def main(args: argparse.Namespace) -> None:
    from mpcl.evaluation.runs import find_runs
    from mpcl.visualization.report.page import write_report

    output = args.output or args.runs[0] / "report.html"
    notes = write_report(
        find_runs(args.runs), output, images=args.images, patches=args.patches, width=args.width
    )
    for note in notes:
        print(f"Note: {note}")
    print(f"{output} ({output.stat().st_size / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
