"""How the command-line tools end: a user's mistake is one message and status 2, not a traceback."""

import argparse
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .messages import printable

_USER_ERROR = 2  # exit status, as argparse's own
UNTIL_TOLD = 3.0  # seconds in which another process has written the same message
DEBUG = "--debug"


def add_debug_option(parser: argparse.ArgumentParser) -> None:
    """Puts ``--debug`` into the help of a tool."""
    parser.add_argument(DEBUG, action="store_true", help="show the full traceback of an error")


@contextmanager
def user_errors(program: str, debug: bool = False, silent: bool = False) -> Iterator[None]:
    """Ends the process with one message when the body raises ValueError or OSError.

    These are what the package raises for arguments, configs and files that it cannot work with; all
    else is a fault of the program and keeps its traceback.

    Args:
        program: stands before the message.
        debug: leave the exception alone.
        silent: another process of the job meets the same error and reports it. This one ends
            without a word, with the same status, and late enough: whoever ends first ends the job.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        if debug:
            raise
        if silent:
            time.sleep(UNTIL_TOLD)
            raise SystemExit(_USER_ERROR) from None
        text = f"{program}: error: {printable(in_words(error))}\n({DEBUG} shows where)"
        print(text, file=sys.stderr, flush=True)
        raise SystemExit(_USER_ERROR) from None


def without_traceback(record: logging.LogRecord) -> bool:
    """Filter of a logger that logs exceptions: of a user's error, the message alone."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, (ValueError, OSError, FloatingPointError)):
        record.msg, record.args = "%s %s", (record.getMessage(), in_words(error))
        record.exc_info = None
    return True


def in_words(error: Exception) -> str:
    """The message of an error; of one of the operating system without its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
