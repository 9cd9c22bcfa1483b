#!/usr/bin/env python
"""Writes docs/CONFIG.md, the reference of every config key, from mpcl/config/keys.py.

python dev/config_reference.py            # writes docs/CONFIG.md
python dev/config_reference.py --check    # exit status 1 if the file is out of date
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "projects/MPCL/mpcl/config/keys.py"
REFERENCE = ROOT / "docs/CONFIG.md"

HEAD = """\
# Config keys

Made by `python dev/config_reference.py` from the comments in
[`config/keys.py`](../projects/MPCL/mpcl/config/keys.py); a test keeps it true.

A config is a YAML file; `_BASE_` names files that it changes. Any key can also be set at the end of
a command, as `KEY VALUE`, for instance `SOLVER.MAX_ITER 40000`; lists are quoted:
`DATASETS.TEST "('my_sem_seg_val',)"`. An unknown key, a value of the wrong type or range, a key of
Detectron2 that nothing reads, and combinations that cannot be trained are refused before anything
starts; the message says what was expected.

Numbers in brackets are equations of the paper, "Table X" its tables; their place in the code is in
[projects/MPCL/README.md](../projects/MPCL/README.md). The defaults are those of the paper's
single-resolution setting; what a config file sets on top is in that file.
"""

ASSIGNMENT = re.compile(r"    ([\w.]+) = (.+?)(?:  # (.*))?")


def keys(source: str) -> Iterator[tuple[str, str, str]]:
    """Name, default and meaning of each key: of every ``cfg.X = value`` on one line, with the
    comment above or behind it. The default of a group is ``CN()``."""
    names, above = {"cfg": ""}, []
    for line in source.partition("def add_mpcl_config")[2].splitlines():
        if line.startswith("    # "):
            above.append(line.removeprefix("    # "))
        elif match := ASSIGNMENT.fullmatch(line):
            short, _, rest = match[1].partition(".")
            if rest:
                yield names[short] + rest, match[2], " ".join([*above, match[3] or ""]).strip()
            else:  # st = cfg.SELF_TRAINING
                names[short] = match[2].removeprefix("cfg.") + "."
            above = []
        else:
            above = []


def render(source: str) -> str:
    """The whole page: a table for each group."""
    groups, introductions = defaultdict(list), {}
    for name, default, meaning in keys(source):
        if default == "CN()":
            introductions[name] = _in_markdown(meaning) + "\n\n"
            continue
        cells = (f"`{name}`", f"`{default}`", _in_markdown(meaning).replace("|", "\\|"))
        groups[name.rpartition(".")[0]].append(f"| {' | '.join(cells)} |\n")
    page = HEAD
    for group, rows in groups.items():
        page += f"\n## {group or 'Whole run'}\n\n{introductions.get(group, '')}"
        page += f"| key | default | meaning |\n|---|---|---|\n{''.join(rows)}"
    return page


def _in_markdown(text: str) -> str:
    """Plain text of a comment; pages that it names become links."""
    pages = re.compile(r"\b(docs/(\w+\.md)|datasets/README\.md)")
    return pages.sub(lambda m: f"[{m[1]}]({m[2] or '../' + m[1]})", text.replace("<", "&lt;"))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    return parser.parse_args(argv)


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
