"""A folder in which the commands of a page are run as they are printed, at tiny scale."""

import contextlib
import faulthandler
import logging
import shutil
from pathlib import Path

import numpy as np
from conftest import TINY, draw_scene
from pages import ROOT, Command, blocks, commands
from PIL import Image
from real_parsers import load
from test_commands import is_excluded

# Tools whose KEY VALUE pairs shrink a run; a shipped config is of full size.
SHRUNK = ("tools/train_net.py", "tools/predict.py")


def enter(folder: Path, monkeypatch) -> None:
    """Works in a folder that looks like the root of a checkout."""
    for name in ("projects", "tools", "dev", "datasets"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    monkeypatch.setattr(faulthandler, "enable", lambda: None)  # needs a real standard error
    # Handlers that other tests have left write to streams that are closed by now.
    monkeypatch.setattr(logging, "raiseExceptions", False)


def save_scenes(folder: Path, count: int, domain: str, *, suffix: str, ids=None) -> None:
    """Images in ``folder``/images, and with ``ids`` of the four classes masks beside them."""
    for i in range(count):
        image, label = draw_scene(np.random.default_rng(i), domain)
        save(image, folder / "images" / f"{i}{suffix}")
        if ids is not None:
            save(np.array([*ids, *[255] * 252], np.uint8)[label], folder / "masks" / f"{i}.png")


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def write_files(page: Path) -> None:
    """The YAML blocks of a page that begin with the name of their file."""
    for block in blocks(page):
        first, _, _ = block.text.partition("\n")
        if block.language == "yaml" and first.startswith("# ") and first.endswith(".yaml"):
            Path(first[2:]).parent.mkdir(exist_ok=True)
            Path(first[2:]).write_text(block.text)


def runnable(page: Path) -> list[Command]:
    """Commands of a page that call a tool of ours."""
    found = [command for command in commands(page) if not is_excluded(command.text)]
    return [command for command in found if command.words[0] == "python"]


def run(command: Command, small: list[str] = TINY) -> None:
    """In this process; anything but success is an error."""
    script, *words = command.words[1:]
    if script in SHRUNK and "--config-file" in words:
        named = {"MODEL.WEIGHTS", "--weights"} & set(words)
        words = [*words, *(_without_weights(small) if named else small)]
    if "--output" in words:
        remove(Path(words[words.index("--output") + 1]))
    module = load(script)
    try:
        status = getattr(module, "cli", None) or module.main
        status = status(words)
    except SystemExit as end:
        status = end.code
    assert not isinstance(status, int) or status == 0, f"{command} ended with {status}"


def _without_weights(pairs: list[str]) -> list[str]:
    at = pairs.index("MODEL.WEIGHTS")
    return [*pairs[:at], *pairs[at + 2 :]]


def remove(path: Path) -> None:
    """What an earlier call has written: the tools refuse to replace it."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
