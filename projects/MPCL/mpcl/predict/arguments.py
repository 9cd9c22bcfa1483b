"""Command-line arguments that name a trained network, the same in all tools that use one."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_network_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds ``--run``, ``--config-file``, ``--weights``, ``--student`` and KEY VALUE pairs."""
    parser.add_argument("--run", type=Path, help="output folder of a run; its newest checkpoint")
    parser.add_argument("--config-file", type=Path, help="with --weights, instead of a run")
    parser.add_argument(
        "--weights", type=Path, help="checkpoint; alone: a slim file of tools/export.py"
    )
    parser.add_argument("--student", action="store_true", help="not the teacher, the student")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="of the config")


def network_arguments(args: argparse.Namespace, opts: Sequence[Any] = ()) -> dict[str, Any]:
    """Arguments of :func:`mpcl.predict.predictor.load_network`.

    Args:
        opts: of the tool's own options; the command line's KEY VALUE pairs come behind them.

    Raises:
        ValueError: no network, or two of them, are named.
    """
    if (args.run and args.config_file) or not (args.run or args.config_file or args.weights):
        raise ValueError(
            "name a network: --run FOLDER, or --config-file FILE with --weights FILE, or a slim "
            "--weights FILE"
        )
    alone = not (args.run or args.config_file)
    return {
        "source": args.run or args.config_file or args.weights,
        "weights": "" if alone or not args.weights else args.weights,
        "opts": [*opts, *args.opts],
        "student": args.student,
    }
