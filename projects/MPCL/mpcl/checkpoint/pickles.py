"""Reads pickles of NumPy arrays, such as detectron2's model zoo, without calling what they name.

Unpickling calls functions of the file's choice, and NumPy's own trust their arguments: a forged
dtype turns bytes into pointers. Here every call of a pickle is only written down; afterwards the
arrays are built from what is plainly one.
"""

import pickle
import re
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

_CORES = ("numpy.core", "numpy._core")  # the second is NumPy 2's name
_DTYPE, _NDARRAY = ("numpy", "dtype"), ("numpy", "ndarray")
_BYTES = {("__builtin__", "bytes"), ("builtins", "bytes")}  # of nothing, in old protocols
_ENCODE, _ORDERED = ("_codecs", "encode"), ("collections", "OrderedDict")
_RECONSTRUCT = {(f"{core}.multiarray", "_reconstruct") for core in _CORES}
_SCALAR = {(f"{core}.multiarray", "scalar") for core in _CORES}
_BUFFER = {(f"{core}.numeric", "_frombuffer") for core in _CORES}
_KNOWN = {*_BYTES, _DTYPE, _NDARRAY, _ENCODE, _ORDERED, *_RECONSTRUCT, *_SCALAR, *_BUFFER}
_KIND = re.compile(r"\?|b1|[iufc](1|2|4|8|16)")


def load_arrays(path: str | Path) -> Any:
    """Content of a pickle: arrays and scalars of numbers, in dicts, lists and tuples, with texts.

    Raises: Exception: of nearly every kind, where it is damaged or holds anything else.
    """
    return _built(_Recorder(BytesIO(Path(path).read_bytes()), encoding="latin1").load(), {})


class _Name(tuple):
    """What a pickle calls, as (module, name). Has no attribute that a pickle could set."""

    __slots__ = ()

    def __call__(self, *arguments: Any) -> "_Call":
        return _Call(self, arguments)


class _Call:
    """A call that a pickle asks for, and the state that it gives to the result."""

    __slots__ = ("arguments", "name", "state")

    def __init__(self, name: _Name, arguments: tuple[Any, ...]) -> None:
        self.name, self.arguments, self.state = name, arguments, None
        if name == _ORDERED:
            self.state = {}

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        self.state[key] = value


# Python's own unpickler: the one in C reserves what a number in the file says.
class _Recorder(pickle._Unpickler):  # type: ignore[name-defined, misc]
    def find_class(self, module: str, name: str) -> _Name:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return _Name((module, name))


def _built(value: Any, known: dict[int, Any]) -> Any:
    """The value with arrays in place of calls; what is named twice is built once."""
    if id(value) not in known:
        known[id(value)] = _build(value, known)
    return known[id(value)]


def _build(value: Any, known: dict[int, Any]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str, bytes, bytearray)):
        return value
    if isinstance(value, dict):
        return {_built(key, known): _built(one, known) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_built(one, known) for one in value)
    if not isinstance(value, _Call):
        raise pickle.UnpicklingError(type(value).__name__)
    if value.name == _ENCODE and value.arguments[1:] in ((), ("latin1",)):
        return _bytes(value.arguments[0])
    if value.name in _BYTES and value.arguments == ():
        return b""
    if value.name == _ORDERED:
        return _build(dict(*value.arguments) | value.state, known)
    if value.name in _SCALAR:
        dtype, content = value.arguments
        return _array((), dtype, content, known)[()]
    if value.name in _BUFFER:
        content, dtype, shape, order = value.arguments
        return _array(shape, dtype, content, known, order)
    if value.name in _RECONSTRUCT and value.arguments[0] == _NDARRAY:
        _version, shape, dtype, fortran, content = value.state
        return _array(shape, dtype, content, known, "F" if fortran else "C")
    raise pickle.UnpicklingError(".".join(value.name))


def _array(
    shape: tuple[int, ...], dtype: _Call, content: Any, known: dict[int, Any], order: str = "C"
) -> np.ndarray:
    kind = _dtype(dtype)
    data = _bytes(_built(content, known))
    sizes = [int(size) for size in shape]
    if min(sizes, default=0) < 0 or prod(sizes) * kind.itemsize != len(data):
        raise pickle.UnpicklingError(f"an array of {shape} {kind} in {len(data)} bytes")
    array = np.frombuffer(data, kind).reshape(sizes, order="F" if order == "F" else "C")
    return array.astype(kind.newbyteorder("="))


def _dtype(call: _Call) -> np.dtype:
    """Of numbers, by name and byte order alone; what else the state says is not looked at."""
    if not isinstance(call, _Call) or call.name != _DTYPE:
        raise pickle.UnpicklingError("an array without a dtype")
    name, order = call.arguments[0], call.state[1] if call.state else "="
    if not _KIND.fullmatch(name) or order not in ("<", ">", "|", "="):
        raise pickle.UnpicklingError(f"an array of dtype {name}")
    return np.dtype(order + name)


def _bytes(content: Any) -> bytes:
    # Pickles of Python 2 hold bytes as text.
    return content.encode("latin1") if isinstance(content, str) else bytes(memoryview(content))
