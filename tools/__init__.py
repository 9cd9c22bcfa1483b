"""The tools as commands of an installed package, which calls this folder ``mpcl_tools``:
``mpcl-predict WORDS`` is ``python tools/predict.py WORDS``."""

import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

_FOLDER = Path(__file__).parent


def _run(tool: str) -> None:
    """Runs a tool as Python runs a script: its folder is where it looks for modules first."""
    sys.path.insert(0, str(_FOLDER))
    runpy.run_path(str(_FOLDER / f"{tool}.py"), run_name="__main__")


def __getattr__(name: str) -> Callable[[], None]:
    if not (_FOLDER / f"{name}.py").is_file():
        raise AttributeError(name)
    return partial(_run, name)
