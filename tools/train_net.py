#!/usr/bin/env python
"""Trains and evaluates any config: unsupervised domain-adaptive semantic segmentation with MPCL.

  python tools/train_net.py --config-file CONFIG [--num-gpus N] [KEY VALUE ...]
  python tools/train_net.py --config-file CONFIG --resume        # from the newest checkpoint
  python tools/train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS output/model_final.pth
  torchrun --nproc-per-node N --max-restarts 3 tools/train_net.py --config-file CONFIG --resume

A folder that holds a run is left alone, unless --resume or --overwrite is given. Two runs cannot
use one folder at a time.

Exit status: 0 finished; 2 something that was given cannot be worked with; 65 diverged (see
diverged.json); 75 asked to stop (SIGTERM, SIGINT) and saved: start again with --resume; else an
error. docs/RELIABILITY.md has more.
"""

import argparse
import sys
from collections.abc import Sequence

from command_line import DEBUG, make_parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--config-file",
        default="",
        metavar="FILE",
        help="a YAML file, such as projects/MPCL/configs/mic_gauss.yaml",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the newest checkpoint of OUTPUT_DIR, if there is one",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="train anew in a folder that holds a run; its checkpoints become *.old.pth",
    )
    parser.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS, or a run")
    parser.add_argument("--num-gpus", type=int, default=1, help="processes of each machine")
    parser.add_argument("--num-machines", type=int, default=1)
    parser.add_argument("--machine-rank", type=int, default=0, help="from 0, of this machine")
    parser.add_argument(
        "--dist-url", default="auto", help="where several machines meet, such as tcp://node0:29500"
    )
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="keys of the config and their values, last on the line (docs/CONFIG.md)",
    )
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args([word for word in words if word != DEBUG])
    args.debug = DEBUG in words  # also behind the KEY VALUE pairs
    if min(args.num_gpus, args.num_machines) < 1:
        parser.error("--num-gpus and --num-machines expect 1 or more")
    if not 0 <= args.machine_rank < args.num_machines:
        parser.error(f"--machine-rank expects a number below --num-machines {args.num_machines}")
    if args.num_machines > 1 and args.dist_url == "auto":
        parser.error("--num-machines needs --dist-url, the same on all machines")
    return args


def cli(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)

    from mpcl.engine.job import run_job

    run_job(args)


if __name__ == "__main__":
    cli()
