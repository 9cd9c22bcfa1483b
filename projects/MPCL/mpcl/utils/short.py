"""Values of users in messages."""

import reprlib

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 400
_REPR.maxlist = _REPR.maxtuple = _REPR.maxdict = 20
_REPR.maxlevel = 4


def short(value: object) -> str:
    """``repr``, cut where it would be long: aliases of YAML turn a few lines into gigabytes."""
    return _REPR.repr(value)
