"""The pages of the documentation, and the commands, files and links that they hold."""

import ast
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "datasets/README.md")),
        *(ROOT / "projects" / "MPCL").glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
    ]
)
SHELLS = {"bash", "sh", "shell", "console"}
FENCE = re.compile(r"^( *)```(?P<language>\w*)\n(?P<text>.*?)^\1```$", re.M | re.S)
INLINE = re.compile(r"`((?:python[\d.]*|make|torchrun|pip|apt|source|export|tensorboard) [^`]+)`")
# A program that python reads from its standard input: `python - <<'END' > file`.
HEREDOC = re.compile(
    r"^(?P<line>(?P<program>python[\d.]*) - <<'(?P<end>\w+)'[^\n]*)\n(?P<text>.*?)^(?P=end)\n",
    re.M | re.S,
)

# What stands for something of the reader's own, and what the tests read instead.
PLACEHOLDERS = {
    "--config-file ...": "--config-file projects/MPCL/configs/mic_gauss.yaml",
    "--config-file CONFIG": "--config-file projects/MPCL/configs/mic_gauss.yaml",
    "configs/X.yaml": "configs/mic_gauss.yaml",
    "<config>": "daformer_gauss",
    "<keys>": "SEED 1",
    "<run>": "daformer_gauss",
    "<name>": "name",
    "<tree>": "data",
    " ...": "",
}


class Block(NamedTuple):
    page: str  # relative to the root
    line: int  # of the page, from 1
    language: str
    text: str


class Command(NamedTuple):
    page: str
    line: int
    text: str  # as printed, in one line
    words: list[str]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


@cache
def read(page: Path) -> str:
    return page.read_text()


def blocks(page: Path) -> Iterator[Block]:
    text, name = read(page), page.relative_to(ROOT).as_posix()
    for match in FENCE.finditer(text):
        line = text.count("\n", 0, match.start()) + 2
        yield Block(name, line, match["language"], dedent(match["text"]))


def commands(page: Path) -> list[Command]:
    """Of shell blocks and of code in running text, in their order."""
    found = [command for block in blocks(page) for command in commands_of_block(block)]
    name, text = page.relative_to(ROOT).as_posix(), FENCE.sub(_blank, read(page))
    for match in INLINE.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        found.append(_command(name, line, " ".join(match[1].split())))
    return sorted(found, key=lambda command: command.line)


def commands_of_docstring(script: Path) -> list[Command]:
    """Examples at the head of a tool; what stands in brackets may be left out."""
    name = script.relative_to(ROOT).as_posix()
    text = re.sub(r" \[[^\]]*\]", "", ast.get_docstring(ast.parse(read(script))) or "")
    text = re.sub(r" *\\\n *", " ", text)
    lines = [line.strip() for line in text.splitlines()]
    return [_command(name, 1, line) for line in lines if re.match(r"(python|torchrun) \S+ ", line)]


def commands_of_block(block: Block) -> Iterator[Command]:
    """None, if the block is of no shell."""
    if block.language not in SHELLS:
        return
    line, start = block.line, 0
    for match in HEREDOC.finditer(block.text):
        yield from _commands_of_lines(block.page, line, block.text[start : match.start()])
        line, start = block.line + block.text.count("\n", 0, match.end()), match.end()
        first = line - match[0].count("\n")
        words = [*shlex.split(match["program"]), "-c", match["text"]]
        yield Command(block.page, first, match["line"], words)
    yield from _commands_of_lines(block.page, line, block.text[start:])


def _commands_of_lines(page: str, line: int, lines: str) -> Iterator[Command]:
    for text in re.sub(r" *\\\n *", " \0", lines).split("\n"):
        first, line = line, line + 1 + text.count("\0")
        text = text.replace("\0", "").removeprefix("$ ")
        for part in re.split(r" && | ; ", text):
            if shlex.split(part, comments=True):
                yield _command(page, first, part)


def _command(page: str, line: int, text: str) -> Command:
    text = re.sub(r" +#.*", "", text)
    read_as = re.sub(r" > \S+$", "", text)  # output into a file
    for written, meant in PLACEHOLDERS.items():
        read_as = read_as.replace(written, meant)
    return Command(page, line, text, shlex.split(read_as, comments=True))


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")
