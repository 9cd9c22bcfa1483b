"""What was run, kept beside the results: ``run.json``, and a confusion matrix of each evaluation.

``tools/report.py`` reads them. Everything in them is about the past: a config file or a commit that
changes later changes nothing here.
"""

import json
import logging
import platform
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import detectron2
import numpy as np
import torch
import yaml

from ..config import get_cfg_from
from ..utils.atomic_write import write_atomically
from ..utils.distributed import world_size
from ..utils.foreign_files import read_json, read_yaml
from ..utils.messages import short
from .runs import CONFIG, differences, is_number

logger = logging.getLogger(__name__)

RECORD = "run.json"
_PACKAGES = ("mpcl", "torch", "torchvision", "timm", "numpy", "opencv-python-headless")
_KEYS = {"started", "command", "versions", "device", "processes"}
_GIT = {"commit", "branch", "changed_files"}
_SOURCE = Path(__file__).resolve()


def record_session(
    cfg, config_file: str, *, resume: bool = False, command: Sequence[str] | None = None
) -> None:
    """Adds this process to ``run.json`` in OUTPUT_DIR; without ``resume`` the file starts anew.

    Args:
        config_file: the run's base; the keys in which ``cfg`` differs from it are kept with both
            values (none of them where the base is incomplete without them). So are, of a run that
            is resumed, those in which it differs from the run's ``config.yaml`` so far.
        command: the command line; by default this process's own.
    """
    file = Path(cfg.OUTPUT_DIR) / RECORD
    sessions = read_sessions(file.parent) if resume else []
    session = {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": list(sys.argv if command is None else command),
        "config_file": config_file,
        "changed": _changes(cfg, config_file),
        "resumed_with": changed_settings(cfg) if resume else {},
        "git": git_state(_SOURCE),
        "versions": versions(),
        "device": _device(cfg.MODEL.DEVICE),
        "processes": world_size(),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps({"sessions": [*sessions, session]}, indent=2).encode())


def changed_settings(cfg) -> dict[str, tuple[Any, Any]]:
    """The keys in which a config differs from the ``config.yaml`` that a run has left in its
    OUTPUT_DIR, with the value then and now; without those that an earlier version did not have."""
    file = Path(cfg.OUTPUT_DIR) / CONFIG
    if not file.is_file():
        return {}
    changed = differences(read_yaml(file), yaml.safe_load(cfg.dump()))
    return {key: pair for key, pair in changed.items() if pair[0] is not None}


def _changes(cfg, config_file: str) -> dict[str, tuple[Any, Any]] | None:
    try:
        base = get_cfg_from(config_file)
    except ValueError:
        return None
    return differences(yaml.safe_load(base.dump()), yaml.safe_load(cfg.dump()))


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """The sessions of a run, the first one first; none for runs of earlier versions.

    Raises: ValueError: the file is damaged.
    """
    file = folder / RECORD
    if not file.exists():
        return []
    content = read_json(file)
    sessions = content.get("sessions") if isinstance(content, dict) else content
    if not isinstance(sessions, list) or not all(map(_is_session, sessions)):
        raise ValueError(
            f"{file} is no record of a run: {short(content)}; expected sessions as train_net.py "
            "writes them"
        )
    return sessions


def _is_session(session: object) -> bool:
    """Whether the report can show it."""
    if not isinstance(session, dict) or not session.keys() >= _KEYS:
        return False
    command, git = session["command"], session.get("git")
    kept = (session.get(key) for key in ("changed", "resumed_with"))
    changes = [{} if changed is None else changed for changed in kept]
    return (
        isinstance(command, list)
        and all(isinstance(word, str) for word in command)
        and isinstance(session["versions"], dict)
        and isinstance(session.get("config_file", ""), str)
        and (git is None or (isinstance(git, dict) and git.keys() >= _GIT))
        and all(isinstance(changed, dict) for changed in changes)
        and all(
            isinstance(pair, list) and len(pair) == 2
            for changed in changes
            for pair in changed.values()
        )
    )


def git_state(source: Path) -> dict[str, Any] | None:
    """Commit, branch and number of changed files of the working tree that a file of the code is in.

    None where there is no git, or where the tree around the file does not track it: of a package
    installed inside another project's tree that project's commit says nothing.
    """

    def git(*words: str) -> str:
        command = ["git", "-C", str(source.parent), *words]
        run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return run.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "--", source.name)
        return {
            "commit": git("rev-parse", "HEAD"),
            "branch": git("rev-parse", "--abbrev-ref", "HEAD"),
            "changed_files": len(git("status", "--porcelain").splitlines()),
        }
    except (OSError, subprocess.SubprocessError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide on numbers."""
    # Detectron2's packages go by several names.
    found = {"python": platform.python_version(), "detectron2": detectron2.__version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    return found


def _device(name: str) -> str:
    if torch.device(name).type == "cuda" and torch.cuda.is_available():
        return torch.cuda.get_device_name(name)
    return f"{name}, {torch.get_num_threads()} threads"


@dataclass(frozen=True)
class Confusion:
    """An evaluation of a network on a set; rows of ``matrix`` (C, C) are the ground truth."""

    dataset: str
    network: str
    classes: list[str]
    matrix: list[list[int]]
    seconds: float


def write_confusion(
    folder: Path, network: str, classes: Sequence[str], matrix: np.ndarray, seconds: float
) -> None:
    """Keeps the newest evaluation of a network on a set.

    Args:
        folder: ``<OUTPUT_DIR>/inference/<set>``.
        network: ``teacher`` or ``student``.
        matrix: (C, C) pixels; rows are the ground truth, columns the prediction.
        seconds: of the pass over the images, which teacher and student share.
    """
    content = {"classes": list(classes), "matrix": matrix.tolist(), "seconds": round(seconds, 3)}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"confusion_{network}.json", json.dumps(content).encode())


def read_confusions(folder: Path) -> list[Confusion]:
    """What :func:`write_confusion` has kept of a run, the teacher's first.

    Raises: ValueError: a file is something else.
    """
    found = []
    for file in sorted(folder.glob("inference/*/confusion_*.json")):
        network = file.stem.removeprefix("confusion_")
        content = read_json(file)
        if not _is_confusion(content):
            raise ValueError(
                f"{file} is no confusion matrix: {short(content)}; expected classes, a matrix of "
                "their number squared, and seconds"
            )
        found.append(Confusion(file.parent.name, network, **content))
    return sorted(found, key=lambda c: (c.dataset, c.network != "teacher", c.network))


def _is_confusion(content: Any) -> bool:
    if not isinstance(content, dict) or content.keys() != {"classes", "matrix", "seconds"}:
        return False
    classes, matrix = content["classes"], content["matrix"]
    if not isinstance(classes, list) or not isinstance(matrix, list):
        return False
    rows = [row for row in matrix if isinstance(row, list) and len(row) == len(classes)]
    return (
        all(isinstance(name, str) for name in classes)
        and len(rows) == len(matrix) == len(classes)
        and all(isinstance(value, int) and 0 <= value < 2**63 for row in rows for value in row)
        and is_number(content["seconds"])
    )
