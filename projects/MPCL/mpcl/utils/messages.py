"""Values of users in messages."""

import os
import reprlib

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 400
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 20
_REPR.maxlevel = 4


AnyPath = str | os.PathLike[str]


def short(value: object) -> str:
    """``repr``, cut where it would be long: aliases of YAML turn a few lines into gigabytes."""
    return _REPR.repr(value)


def shown(path: AnyPath) -> str:
    """A path for people: what would move the cursor, colour a terminal or break a line is escaped,
    as are bytes that are no text."""
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in os.fspath(path)
    )


def printable(text: str) -> str:
    """A message for a terminal: as :func:`shown`, but its lines stay."""
    return "\n".join(map(shown, text.split("\n")))
