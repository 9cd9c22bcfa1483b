#!/usr/bin/env python
"""Writes docs/CONFIG.md, the reference of every config key, from the code that defines the keys.

  python dev/config_reference.py            # writes docs/CONFIG.md
  python dev/config_reference.py --check    # exit status 1 if the file is out of date

Keys, defaults and meanings are the assignments and comments in mpcl/config/keys.py; what the values
are held to comes from mpcl/config/validation.py.
"""

import argparse
import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from detectron2.config import get_cfg

from mpcl.config.reading import get
from mpcl.config.validation import expectations
from mpcl.utils.cli import add_debug_option, command_line

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "projects" / "MPCL" / "mpcl" / "config/keys.py"
REFERENCE = ROOT / "docs" / "CONFIG.md"

# Detectron2's own keys that the project reads with Detectron2's defaults.
DETECTRON2 = {
    "DATASETS.TRAIN": "names of the labelled source sets",
    "DATASETS.TEST": "names of the sets that are evaluated; `()` = no evaluation",
    "INPUT.RANDOM_FLIP": "flips of the training images",
    "DATALOADER.NUM_WORKERS": "loader processes of each rank; 0 = load in the trainer",
    "MODEL.WEIGHTS": "start from these weights ([PREDICT](PREDICT.md) lists the formats); `''` = "
    "random; with `--eval-only` the checkpoint to evaluate",
    "MODEL.RESNETS.DEPTH": "of Detectron2's ResNets ([BACKBONES](BACKBONES.md))",
    "SOLVER.AMP.ENABLED": "autocast of the forward passes; the full-size configs set True",
    "CUDNN_BENCHMARK": "let cuDNN try algorithms; off, runs are repeatable",
    "OUTPUT_DIR": "folder of the run; every config has its own",
}

ORDER = (
    "",
    "DATASETS",
    "INPUT",
    "DATALOADER",
    "MODEL",
    "SELF_TRAINING",
    "PROTOTYPES",
    "SOLVER",
    "TEST",
)

HEAD = """\
# Config keys

Made by `python dev/config_reference.py` from the comments in
[`config/keys.py`](../projects/MPCL/mpcl/config/keys.py); a test keeps it true.

A config is a YAML file; `_BASE_` names files that it changes. Any key can also be set at the end of
a command, as `KEY VALUE`, for instance `SOLVER.MAX_ITER 40000`; lists are quoted:
`DATASETS.TEST "('my_sem_seg_val',)"`. An unknown key, a value of the wrong type or range, and
combinations that cannot be trained are refused before anything starts.

Numbers in brackets are equations of the paper, "Table X" its tables; their place in the code is in
[projects/MPCL/README.md](../projects/MPCL/README.md). The defaults are those of the paper's
single-resolution setting; what a config file sets on top is in that file.
"""


class Key(NamedTuple):
    """A config key; of a group, ``default`` is None."""

    name: str
    default: str | None
    meaning: str


def keys(source: str) -> Iterator[Key]:
    """The keys and groups that functions ``_add_*_config`` assign, in their order."""
    comments = _comments(source)
    for function in ast.parse(source).body:
        is_definition = isinstance(function, ast.FunctionDef) and function.name.startswith("_add_")
        if is_definition:
            yield from _keys_of(function, comments)


def _keys_of(function: ast.FunctionDef, comments: dict[int, tuple[int, str]]) -> Iterator[Key]:
    names = {"cfg": ""}  # what short names stand for
    for statement in function.body:
        if not isinstance(statement, ast.Assign):
            continue
        target, value = statement.targets[0], statement.value
        if isinstance(target, ast.Name):  # st = cfg.SELF_TRAINING
            names[target.id] = f"{_dotted(value, names)}."
            continue
        is_group = isinstance(value, ast.Call) and ast.unparse(value) == "CN()"
        default = None if is_group else ast.unparse(value)
        yield Key(_dotted(target, names), default, _meaning(statement, comments))


def _dotted(node: ast.expr, names: dict[str, str]) -> str:
    short, _, rest = ast.unparse(node).partition(".")
    return names[short] + rest


def _comments(source: str) -> dict[int, tuple[int, str]]:
    """Line number -> column and text of its comment."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    found = [token for token in tokens if token.type == tokenize.COMMENT]
    return {t.start[0]: (t.start[1], t.string.lstrip("# ")) for t in found}


def _meaning(statement: ast.Assign, comments: dict[int, tuple[int, str]]) -> str:
    """The lines of comment directly above the statement, then those behind its parts."""
    first = statement.lineno
    above = []
    while (line := first - len(above) - 1) in comments and comments[line][
        0
    ] == statement.col_offset:
        above.insert(0, comments[line][1])
    lines = range(first, (statement.end_lineno or first) + 1)
    behind = [comments[line][1] for line in lines if line in comments]
    return " ".join([*above, *behind])


def render(source: str) -> str:
    """The whole page."""
    found = list(keys(source))
    introductions = {key.name: key.meaning for key in found if key.default is None}
    rows = [key for key in found if key.default is not None]
    parts = [HEAD]
    for group in sorted({_group(key) for key in rows}, key=_order):
        parts.append(f"## {group or 'Whole run'}\n")
        if introductions.get(group):
            parts.append(f"{_in_markdown(introductions[group])}\n")
        parts.append(_table(key for key in rows if _group(key) == group))
    parts.append("## Detectron2's own keys that are used\n")
    defaults = get_cfg()
    parts.append(_table(Key(k, repr(get(defaults, k)), text) for k, text in DETECTRON2.items()))
    return "\n".join(parts)


def _group(key: Key) -> str:
    return key.name.rpartition(".")[0]


def _order(group: str) -> tuple[int, str]:
    first = group.partition(".")[0]
    return (ORDER.index(first) if first in ORDER else len(ORDER), group)


def _table(rows: Iterable[Key]) -> str:
    lines = ["| key | default | values | meaning |", "|---|---|---|---|"]
    expected = expectations()
    for key in rows:
        choices = "True, False" if key.default in ("True", "False") else ""
        values = expected.get(key.name, choices).removeprefix("one of ")
        cells = (f"`{key.name}`", f"`{key.default}`", values, _in_markdown(key.meaning))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _in_markdown(text: str) -> str:
    """Plain text of a comment; pages that it names become links."""
    text = text.replace("<", "&lt;")
    return re.sub(r"\b(docs/(\w+\.md)|datasets/README\.md)", _link, text)


def _link(match: re.Match[str]) -> str:
    return f"[{match[1]}]({match[2] or '../' + match[1]})"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    add_debug_option(parser)
    return parser.parse_args(argv)


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    text = render(SOURCE.read_text())
    if not args.check:
        REFERENCE.write_text(text)
    elif not REFERENCE.exists() or REFERENCE.read_text() != text:
        print("docs/CONFIG.md is out of date: run python dev/config_reference.py")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
