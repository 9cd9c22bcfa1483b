"""Reads a command line with the parser and the config loader of the tool that it names."""

import argparse
import importlib.util
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from detectron2.data import DatasetCatalog
from pages import ROOT
from torch.distributed.run import get_args_parser

from mpcl.config import get_cfg_from
from mpcl.predict.predictor import Predictor  # noqa: F401  (what the tools share is imported once)


class Parsed(Exception):
    """Ends a tool when it has read its command line."""


@cache
def load(script: str) -> ModuleType:
    path = ROOT / script
    assert path.is_file(), f"there is no {script}"
    spec = importlib.util.spec_from_file_location(f"documented_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as `python tools/x.py` does
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module


def parse(script: str, words: list[str]) -> argparse.Namespace:
    """What the tool reads; SystemExit where it refuses."""
    module = load(script)
    if hasattr(module, "parse_args"):
        return module.parse_args(words)
    original = argparse.ArgumentParser.parse_args

    def stop(self, *args, **options):
        raise Parsed(original(self, *args, **options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [script, *words])
        try:
            module.main()
        except Parsed as parsed:
            return parsed.args[0]
    raise AssertionError(f"{script} has read no command line")


def check_tool(script: str, words: list[str]) -> None:
    """The options are known; the config exists, and takes the KEY VALUE pairs."""
    args = vars(parse(script, words))
    config, pairs = args.get("config_file") or "", args.get("opts") or []
    if config and (ROOT / config).is_file():
        get_cfg_from(str(ROOT / config), pairs)
    else:
        assert not config or config.startswith("my_"), f"there is no {config}"
        get_cfg_from("", [] if config else pairs)
    names = args.get("names", []) if script == "tools/check_data.py" else []
    for name in [*names, *filter(None, [args.get("dataset")])]:
        assert name in DatasetCatalog, f"{name} is no registered data set"


def check_python(words: list[str]) -> None:
    if words[0] == "-c":
        compile(words[1], "documentation", "exec")
    else:
        check_tool(words[0], words[1:])


def check_torchrun(words: list[str]) -> None:
    args = get_args_parser().parse_args(words)
    check_python([args.training_script, *args.training_script_args])


def check_make(words: list[str]) -> None:
    """The target and the variables are the Makefile's, and the recipe can be read."""
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name, is_variable, _ = word.partition("=")
        line = rf"^{name} \?=" if is_variable else rf"^{name}:.*##"
        assert re.search(line, makefile, re.M), f"the Makefile has no {word}"
    subprocess.run(["make", "-n", *words], cwd=ROOT, check=True, capture_output=True)


def is_script(word: str) -> bool:
    return Path(word).suffix == ".py"
