"""Every command of the documentation is one that works.

All are read here by the real parser of the tool and by the config loader. Those of GETTING_STARTED
and PREDICT are run as well (test_getting_started.py, test_predict_page.py), those of ABLATIONS in
tests/engine/test_ablations.py, `make demo` in tests/tools/test_demo.py, `make setup`, `make lint`
and `make test` by .ci/run.
"""

import re
from itertools import dropwhile

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from pages import (
    PAGES,
    ROOT,
    SHELLS,
    Block,
    blocks,
    commands,
    commands_of_block,
    commands_of_docstring,
)
from real_parsers import check_make, check_python, check_torchrun, is_script

# Commands that no test can run or read, each with its reason.
NOT_RUN = {
    r"python\S* -m pip ": "changes the environment and needs a package index",
    r"pip ": "changes the environment and needs a package index",
    r"pip-audit$": "a program of a package that the tests do not need; asks a public database",
    r"apt install ": "changes the machine",
    r"source \.venv/bin/activate$": "changes the reader's shell",
    r"export [A-Z0-9_]+=": "changes the reader's shell",
    r"tensorboard --logdir ": "a server of another project, which runs until it is stopped",
}
COMMANDS = [command for page in PAGES for command in commands(page)]
SCRIPTS = [*ROOT.glob("tools/*.py"), *ROOT.glob("datasets/prepare_*.py")]
EXAMPLES = [command for script in sorted(SCRIPTS) for command in commands_of_docstring(script)]


def check(words: list[str]) -> None:
    program, *arguments = dropwhile(lambda word: re.match(r"[A-Z][A-Z0-9_]*=", word), words)
    if re.fullmatch(r"python[\d.]*", program):
        check_python(arguments)
    elif is_script(program):
        check_python(words)
    elif program == "torchrun":
        check_torchrun(arguments)
    elif program == "make":
        check_make(arguments)
    else:
        raise AssertionError(f"{program} is no tool of the project and not in NOT_RUN")


def is_excluded(text: str) -> bool:
    return any(re.match(pattern, text) for pattern in NOT_RUN)


@pytest.mark.parametrize("command", [c for c in COMMANDS if not is_excluded(c.text)], ids=str)
def test_the_command_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(command.words)


@pytest.mark.parametrize("command", EXAMPLES, ids=str)
def test_an_example_of_a_tool_is_understood(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    check(command.words)


def test_nothing_is_left_out_without_need():
    for pattern in NOT_RUN:
        assert any(re.match(pattern, command.text) for command in COMMANDS), pattern
    assert len(COMMANDS) > 60 and len(EXAMPLES) > 20


def test_commands_stand_in_shell_blocks():
    """Elsewhere they would not be checked."""
    for page in PAGES:
        for block in blocks(page):
            if block.language not in SHELLS:
                hidden = re.search(r"^(python\S* (tools|datasets)/|make [a-z])", block.text, re.M)
                assert not hidden, f"{block.page}:{block.line}"


def test_a_program_in_a_heredoc_is_one_command_and_lines_are_counted_on():
    text = "make lint\npython - <<'END' > out.txt\nimport json\n\nprint(1)  # one\nEND\nmake test\n"
    found = list(commands_of_block(Block("page.md", 10, "sh", text)))
    assert [(c.line, c.text) for c in found] == [
        *((10, "make lint"), (11, "python - <<'END' > out.txt"), (16, "make test"))
    ]
    assert found[1].words == ["python", "-c", "import json\n\nprint(1)  # one\n"]
    check(found[1].words)
    with pytest.raises(SyntaxError):
        check(["python", "-c", "import\n"])


LIBRARY = [b for page in PAGES for b in blocks(page) if b.language == "python"]


@pytest.mark.parametrize(
    "block",
    [b for b in LIBRARY if "Predictor" not in b.text],  # these: test_predict_page.py
    ids=lambda block: f"{block.page}:{block.line}",
)
def test_python_of_the_pages_runs(block):
    known = set(DatasetCatalog)
    exec(block.text, {})
    for name in set(DatasetCatalog) - known:
        assert name in block.text
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


TRAIN = "python tools/train_net.py --config-file projects/MPCL/configs"


@pytest.mark.parametrize(
    "text",
    [
        "python tools/nothing.py",
        "python tools/predict.py --input a.png --output o --no-such-option",
        f"{TRAIN}/nothing.yaml",
        f"{TRAIN}/mic.yaml SOLVER.MAX 1",
        f"{TRAIN}/mic.yaml SEED x",
        "python tools/check_data.py no_such_sem_seg_train",
        "make nothing",
        "make test THREADS=1",
        "torchrun --nproc-per-node 2 tools/nothing.py",
        "frobnicate",
    ],
)
def test_a_command_that_does_not_work_is_found(text, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises((AssertionError, ValueError, SystemExit)):
        check(text.split())
