"""What the command lines of the tools share. Nothing here needs torch: ``--help`` and wrong
arguments answer at once, and a tool imports what it works with inside its main function."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DEBUG = "--debug"


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose help is a tool's docstring as it is laid out there, with ``--debug``."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(DEBUG, action="store_true", help="show the full traceback of an error")
    return parser


def command_line(
    parse_args: Callable[[Sequence[str]], argparse.Namespace],
) -> Callable[[Callable[[argparse.Namespace], Any]], Callable[..., Any]]:
    """Decorates a tool's ``main(args)``, which then takes a list of words, or the process's own.

    A user's mistake ends it with one message and status 2 (:func:`mpcl.utils.cli.user_errors`).
    ``--debug`` may stand anywhere, behind KEY VALUE pairs too, and shows the traceback.
    """

    def decorate(main: Callable[[argparse.Namespace], Any]) -> Callable[..., Any]:
        @functools.wraps(main)
        def run(words: Sequence[str] | None = None) -> Any:
            words = sys.argv[1:] if words is None else words
            args = parse_args([word for word in words if word != DEBUG])
            args.debug, program = DEBUG in words, Path(main.__code__.co_filename).name

            from mpcl.utils.cli import user_errors

            with user_errors(program, args.debug):
                return main(args)

        return run

    return decorate


def add_network_arguments(parser: argparse.ArgumentParser, *, student: bool = True) -> None:
    """Adds ``--run``, ``--config-file``, ``--weights`` and KEY VALUE pairs, which name a network.

    Args:
        student: also ``--student``, where one of a checkpoint's networks predicts.
    """
    parser.add_argument("--run", type=Path, help="output folder of a run; its newest checkpoint")
    parser.add_argument("--config-file", help="with --weights, instead of a run")
    parser.add_argument(
        "--weights", type=Path, help="checkpoint; alone: a slim file of tools/export.py"
    )
    if student:
        parser.add_argument("--student", action="store_true", help="not the teacher, the student")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="of the config")


def network_arguments(
    parser: argparse.ArgumentParser, args: argparse.Namespace, opts: Sequence[Any] = ()
) -> dict[str, Any]:
    """Arguments of :func:`mpcl.predict.loading.load_networks`; ends the tool where the command line
    names no network or two of them.

    Args:
        opts: of the tool's own options; the command line's KEY VALUE pairs come behind them.
    """
    if (args.run and args.config_file) or not (args.run or args.config_file or args.weights):
        parser.error(
            "name a network: --run FOLDER, or --config-file FILE with --weights FILE, or a slim "
            "--weights FILE"
        )
    source = args.run or args.config_file
    return {
        "source": source or args.weights,
        "weights": args.weights if source and args.weights else "",
        "opts": [*opts, *args.opts],
        "student": getattr(args, "student", False),
    }
