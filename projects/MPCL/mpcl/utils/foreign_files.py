"""Files from elsewhere: text, YAML, JSON, looked at before they are read or unfolded; digests."""

import hashlib
import json
import os
import stat
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from .messages import AnyPath, shown

MAX_YAML = 2**20  # bytes
_MAX_TEXT = 2**28
_MAX_NODES = 100_000  # of a YAML file, aliases written out
_MAX_DEPTH = 50
_MAX_NUMBER = 1000  # characters


def check_regular(path: AnyPath) -> int:
    """The size in bytes of a regular file; of nothing that would block or never end when it is
    read, such as a pipe or a device.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is no regular file.
    """
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{shown(path)} is no regular file; expected a file on a disk")
    return status.st_size


def check_config_path(path: str) -> None:
    """Refuses what cannot be a config, without opening it. Addresses (``https://...``) pass.

    Raises:
        FileNotFoundError: there is nothing; names files beside it whose names are near.
        ValueError: it is Python.
    """
    if path.endswith(".py"):
        raise ValueError(f"{shown(path)} is Python, such as a LazyConfig; expected a YAML file")
    if "://" not in path and not os.path.exists(path):
        beside = [file.name for file in Path(path).parent.glob("*.y*ml")]
        near = get_close_matches(Path(path).name, beside)
        hint = f" (did you mean {', '.join(map(shown, near))}?)" if near else ""
        raise FileNotFoundError(f"config file {shown(path)} does not exist{hint}")


def read_text(path: AnyPath, *, most: int = _MAX_TEXT) -> str:
    """A text file in UTF-8, with or without a mark in front, as Windows' editors put it.

    Args:
        most: bytes.
    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is no regular file, too large, or no text.
    """
    if (size := check_regular(path)) > most:
        raise ValueError(f"{shown(path)} has {size} bytes; expected at most {most}")
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{shown(path)} is no text file; expected text in UTF-8") from None


def read_yaml(path: AnyPath) -> Any:
    """Content of a YAML file, by :func:`parse_yaml`."""
    return parse_yaml(read_text(path, most=MAX_YAML), shown(path))


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets the last of two equal keys win in silence; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            line = node.start_mark.line + 1
            raise ValueError(f"the mapping at line {line} has a key twice: {', '.join(twice)}")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, name: str) -> Any:
    """Content of a YAML document, which aliases cannot unfold to more than ``_MAX_NODES`` values.

    Args:
        name: of the document in messages.
    Raises: ValueError: it is no YAML, too deep, too large, has a key twice, or tags that would run
        Python.
    """
    try:
        if (node := yaml.compose(text, yaml.SafeLoader)) is not None:
            _measure(node, {})
        return yaml.load(text, _UniqueKeyLoader)
    except yaml.constructor.ConstructorError as error:
        problem = str(error.problem).strip().partition("\n")[0]
        hint = ". Tags such as !!python would run code; write plain values"
        place = f"{error.problem_mark}{hint if 'tag' in problem else ''}"
        raise ValueError(f"{name} is no valid YAML: {problem} {place}") from None
    except RecursionError:
        raise ValueError(f"{name} is no valid YAML: {_DEPTH}") from None
    # The last three are PyYAML's for values that are none of their tag: "!!int x".
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, OverflowError) as error:
        raise ValueError(f"{name} is no valid YAML: {error}") from None


_DEPTH = f"it is nested too deep; expected at most {_MAX_DEPTH} levels"


def _measure(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Values below a node, aliases written out, and levels."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = 0, _MAX_DEPTH  # an alias that leads back to where it is has no end
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    elif len(node.value) > _MAX_NUMBER and node.tag != "tag:yaml.org,2002:str":
        raise ValueError(f"a number of {len(node.value)} characters")
    measured = [_measure(child, known) for child in children]
    # Long texts count for several.
    text = len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 0
    total = 1 + text + sum(values for values, _ in measured)
    levels = 1 + max((levels for _, levels in measured), default=0)
    if levels > _MAX_DEPTH:
        raise ValueError(_DEPTH)
    if total > _MAX_NODES:
        raise ValueError(f"it unfolds to more than {_MAX_NODES} values")
    known[id(node)] = total, levels
    return known[id(node)]


def read_json(path: AnyPath) -> Any:
    """Content of a JSON file.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is no JSON.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError(f"{shown(path)} is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"{shown(path)} is no valid JSON: {error}") from None


def sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
