"""Merges files and ``KEY VALUE`` pairs into a config: runs no code, and names every mistake."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from io import StringIO
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.utils.file_io import PathManager

from ..utils.foreign_files import MAX_YAML, check_config_path, parse_yaml, read_text
from ..utils.messages import short, shown


class UnknownKey(KeyError, ValueError):
    """A key that no config has; its message is a sentence, unlike KeyError's."""

    __str__ = ValueError.__str__


def merge_file(cfg: CN, path: str) -> None:
    """Merges a YAML file and the files of its ``_BASE_``; tags that would run Python are refused.

    Raises:
        FileNotFoundError: the file, or one of its bases, does not exist.
        ValueError: it is no valid config; the message names the file and the key.
    """
    check_config_path(path)
    content = _load(path)
    _check(cfg, content, f"{shown(path)}: ")
    cfg.merge_from_other_cfg(CN(content))


def merge_options(cfg: CN, options: Sequence[Any]) -> None:
    """Merges ``[KEY, VALUE, ...]``; values may be strings, as a command line has them.

    Raises: ValueError: a word without a partner, an unknown key, or a value of the wrong type.
    """
    words = list(options)
    if late := [word for word in map(str, words) if word.startswith("--")]:
        raise ValueError(
            f"{late[0]} stands behind KEY VALUE pairs ({words[0]} ...); put options before them"
        )
    if files := [word for word in map(str, words[::2]) if word.endswith((".yaml", ".yml"))]:
        raise ValueError(
            f"{files[0]} stands where a KEY was expected; a config is named by --config-file"
        )
    if len(words) % 2:
        raise ValueError(
            f"expected KEY VALUE pairs, got an odd number of words: {' '.join(map(str, words))} "
            "(quote values that hold spaces)"
        )
    unknown = [key for key in words[::2] if not _exists(cfg, str(key))]
    if unknown:
        raise UnknownKey("; ".join(_advice(cfg, str(key)) for key in unknown))
    pairs = [
        (key, _typed(key, get(cfg, key), value, "")) for key, value in zip(words[::2], words[1::2])
    ]
    cfg.merge_from_list([word for pair in pairs for word in pair])


def get(cfg: Mapping[str, Any], dotted: str) -> Any:
    """The value, or group, of a dotted key; KeyError or TypeError where there is none."""
    node: Any = cfg
    for part in dotted.split("."):
        node = node[part]
    return node


def leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted names of all keys that are no group."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"  # a number, in a file that is no config of ours


def _load(path: str) -> dict[str, Any]:
    name = shown(path)
    try:
        content = _Bounded.load_yaml_with_base(path, allow_unsafe=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{error}, which is a _BASE_ of {name} or of one of its bases"
        ) from None
    except ValueError as error:
        of = "" if str(error).startswith(name) else f"{name}: in one of its _BASE_: "
        raise ValueError(f"{of}{error}") from None
    except RecursionError:
        raise ValueError(f"{name}: too many _BASE_ files below each other") from None
    except AssertionError as error:  # a group in one file, a value in the other
        raise ValueError(f"{name}: {error}") from None
    except (AttributeError, TypeError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{name}, or one of its _BASE_, is empty or no mapping of keys")
    return content


# The files that led to the one that is read; each thread has its own.
_including: ContextVar[tuple[str, ...]] = ContextVar("including", default=())


class _Bounded(CN):
    """Reads each file, and each ``_BASE_``, only after it was found small and plain."""

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> dict[str, Any]:
        path, including = os.path.realpath(filename), _including.get()
        if path in including:
            files = " -> ".join(map(shown, [*including[including.index(path) :], path]))
            raise ValueError(f"{shown(filename)}: its _BASE_ leads back to it: {files}")
        check_config_path(filename)
        here = _including.set((*including, path))
        try:
            return super().load_yaml_with_base(filename, allow_unsafe)
        finally:
            _including.reset(here)

    @classmethod
    def _open_cfg(cls, filename: str) -> StringIO:
        text = read_text(PathManager.get_local_path(filename), most=MAX_YAML)
        parse_yaml(text, filename)
        return StringIO(text)


def _check(cfg: CN, content: dict[str, Any], place: str, prefix: str = "") -> None:
    """Compares keys and types with the defaults, and makes floats of whole numbers in place."""
    for key, value in content.items():
        dotted = f"{prefix}{key}"
        if not isinstance(key, str) or key not in cfg:
            raise UnknownKey(place + _advice(cfg, dotted, prefix))
        if isinstance(cfg[key], CN):
            if not isinstance(value, Mapping):
                raise ValueError(f"{place}{dotted} is {short(value)}; expected a group of keys")
            _check(cfg[key], content[key], place, f"{dotted}.")
        else:
            content[key] = _typed(dotted, cfg[key], value, place)


def _typed(key: str, default: Any, value: Any, place: str) -> Any:
    """The value, made a float where the default is one; ValueError where its type is another."""
    decoded = CN._decode_cfg_value(value)
    if isinstance(default, CN):
        raise ValueError(f"{place}{key} is a group; expected one of its keys, {', '.join(default)}")
    if isinstance(default, float) and type(decoded) is int:
        try:
            return float(decoded)
        except OverflowError:
            raise ValueError(f"{place}{key} is too large for a number: {short(decoded)}") from None
    sequences = isinstance(default, (list, tuple)) and isinstance(decoded, (list, tuple))
    if type(decoded) is not type(default) and not sequences and default is not None:
        raise ValueError(
            f"{place}{key} is {short(decoded)}, {_kind(decoded)}; expected {_kind(default)}, such "
            f"as {_example(default, decoded)}"
        )
    return value


def _kind(value: Any) -> str:
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "text"}
    names |= {type(None): "no value", dict: "a group of keys", list: "a list", tuple: "a list"}
    return names.get(type(value), type(value).__name__)


def _example(default: Any, value: Any) -> str:
    if isinstance(default, (list, tuple)) and isinstance(value, str):
        return f"\"('{value}',)\""
    return repr(default)


def _exists(cfg: CN, dotted: str) -> bool:
    try:
        get(cfg, dotted)
    except (KeyError, TypeError):
        return False
    return True


def _advice(cfg: CN, dotted: str, prefix: str = "") -> str:
    known = [prefix + leaf for leaf in leaves(cfg)]
    similar = get_close_matches(dotted, known, n=3)
    name = dotted.rpartition(".")[2]
    similar += [leaf for leaf in known if leaf.rpartition(".")[2] == name and leaf not in similar]
    similar = similar[:3] or get_close_matches(dotted, [prefix + key for key in cfg], n=1)
    hint = f"did you mean {', '.join(similar)}?" if similar else f"known are {', '.join(cfg)}"
    return f"Unknown config key {dotted}; {hint}"
