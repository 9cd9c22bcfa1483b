"""State dicts compared, in words."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor


def faults(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> str:
    """In words, where names and shapes of ``state`` differ from those expected; "" = nowhere."""
    found = {
        "missing": sorted(expected.keys() - state.keys()),
        "unknown": sorted(state.keys() - expected.keys()),
        "misshapen": sorted(
            name
            for name in state.keys() & expected.keys()
            if state[name].shape != expected[name].shape
        ),
    }
    return "; ".join(
        f"{len(names)} {fault} ({some(names)})" for fault, names in found.items() if names
    )


def some(names: Iterable[Any]) -> str:
    """The first three of many names."""
    names = list(names)
    return ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
