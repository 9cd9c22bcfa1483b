"""Checkpoints that are whole or not there."""

import logging
import os
import re
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from detectron2.utils import comm

from ..utils.atomic_write import TEMPORARY, write_atomically
from .weight_files import check_whole, read, write_checkpoint
from .weights import WeightsCheckpointer

logger = logging.getLogger(__name__)

POINTER = "last_checkpoint"  # written for other tools of detectron2; nothing here reads it
FINAL = "model_final.pth"
SELECTED = "model_selected_on_labels.pth"
"""The one that a labelled set has chosen, where it was asked to; no run goes on from it."""
_WITHOUT_TEACHER = ", as of a run without SELF_TRAINING.ENABLED"
_PERIODIC = re.compile(r"model_\d{7,}\.pth")


class TrainingCheckpointer(WeightsCheckpointer):
    """Writes checkpoints atomically, finds the newest whole one, and lets old ones go.

    A checkpoint is written under another name, brought to the disk and renamed; then the pointer
    ``last_checkpoint`` the same way. A kill at any moment leaves whole checkpoints only.

    Args:
        keep: so many of the newest periodic checkpoints stay; 0 = all. ``model_final.pth`` always
            stays.
    """

    def __init__(self, model, save_dir: str = "", *, keep: int = 0, **checkpointables) -> None:
        super().__init__(model, save_dir, **checkpointables)
        self.keep = keep

    def save(self, name: str, **extra: Any) -> None:
        """Writes ``<name>.pth`` and, unless it is :data:`SELECTED`, points to it. All ranks must
        call it: the state is gathered.

        Raises: OSError: it could not be written (disk full, quota, read-only). The checkpoints
            before it are as they were; the message names the newest.
        """
        content = {"model": self.model.state_dict()}
        content |= {key: obj.state_dict() for key, obj in self.checkpointables.items()} | extra
        if not self.save_dir or not self.save_to_disk:
            return
        target = file = Path(self.save_dir) / f"{name}.pth"
        logger.info(f"Saving checkpoint to {file}")
        try:
            write_checkpoint(content, file)
            if file.name != SELECTED:
                target = file.with_name(POINTER)
                self.tag_last_checkpoint(file.name)
        except OSError as error:
            earlier, _ = self._newest()
            raise OSError(
                error.errno,
                f"could not save {target}: {error.strerror or error}. "
                + (f"The checkpoint {earlier} is whole. " if earlier else "There is no other. ")
                + "Make room or choose another OUTPUT_DIR (SOLVER.CHECKPOINT_KEEP limits the "
                "number of checkpoints), then go on with --resume",
            ) from error
        self._remove_old(file)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        write_atomically(Path(self.save_dir) / POINTER, last_filename_basename.encode())

    def start_afresh(self) -> None:
        """Puts the checkpoints of an earlier run in this folder aside, as ``*.old.pth``: a restart
        must not go on from them."""
        if not self.save_dir:
            return
        folder = Path(self.save_dir)
        for path in (*checkpoints_in(folder), folder / SELECTED):
            if path.is_file():
                path.replace(path.with_suffix(".old.pth"))
        (folder / POINTER).unlink(missing_ok=True)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As fvcore's. All ranks must call it.

        Raises: ValueError: the ranks do not find the same checkpoint, and would go different ways;
            or the checkpoint lacks a part of the training state, which would start at random.
        """
        newest = self.take_newest() if resume else ""
        if resume:
            found = [Path(file).name for file in comm.all_gather(newest)]
            if len(set(found)) > 1:
                raise ValueError(
                    f"the processes find different checkpoints in {self.save_dir}: "
                    f"{', '.join(name or 'none' for name in found)}, in the order of their ranks; "
                    "expected OUTPUT_DIR to be one folder that all machines share"
                )
        self.with_prototypes = bool(newest)
        if not newest:
            return self.load(path, checkpointables=[])
        if lacking := sorted(self.checkpointables.keys() - read(newest, mmap=True)):
            raise ValueError(
                f"{newest} cannot be resumed: it lacks the state of {' and '.join(lacking)}"
                f"{_WITHOUT_TEACHER if 'teacher' in lacking else ''}. Start a new run from its "
                "weights, with MODEL.WEIGHTS and another OUTPUT_DIR"
            )
        return self.load(newest)

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            return super().load(path, *args, **kwargs)
        except (LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"{path}: its training state is not of this run ({type(error).__name__}: {error})"
            ) from error

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """The whole checkpoint of the latest iteration, "" if there is none.

        Raises: ValueError: there are checkpoints, but no whole one.
        """
        found, damaged = self._newest()
        if damaged and not found:
            raise ValueError(
                f"none of the checkpoints in {self.save_dir} can be read: {'; '.join(damaged)}. "
                "Bring a whole one back; or train anew, with --overwrite or another OUTPUT_DIR"
            )
        return found

    def take_newest(self) -> str:
        """:meth:`get_checkpoint_file` for who goes on with it: the log says what is passed over."""
        found = self.get_checkpoint_file()
        for fault in self._newest()[1]:
            logger.warning(f"Passed over for an earlier checkpoint: {fault}")
        return found

    def _newest(self) -> tuple[str, list[str]]:
        """The checkpoint, "" if there is none, and what is wrong with later ones; of two of one
        iteration the final one."""

        def order(path: Path) -> tuple[int, str]:
            return iteration_of(path), path.name

        damaged: list[str] = []
        for path in sorted(self._known(), key=order, reverse=True):
            if not (fault := _fault(path, *_state(path))):
                return str(path), damaged
            damaged.append(fault)
        return "", damaged

    def _known(self) -> list[Path]:
        return checkpoints_in(self.save_dir) if self.save_dir else []

    def _remove_old(self, newest: Path) -> None:
        if not self.keep:
            return
        periodic = [path for path in self._known() if path.name != FINAL]
        for path in sorted(periodic, key=_number)[: -self.keep]:
            if path != newest:
                path.unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        """Files that a kill has left half-written."""
        for path in Path(self.save_dir).glob(f"*{TEMPORARY}"):
            if path.name.startswith(("model_", POINTER)):
                path.unlink(missing_ok=True)


def checkpoints_in(folder: str | os.PathLike[str]) -> list[Path]:
    """The checkpoints that a run has left, whole or not, in no order."""
    names = (p for p in Path(folder).glob("model_*.pth") if _PERIODIC.fullmatch(p.name))
    return [path for path in (*names, Path(folder) / FINAL) if path.is_file()]


def _number(path: Path) -> int:
    """The iteration in a checkpoint's name; of the final one, which has none, above all."""
    found = re.search(r"\d+", path.stem)
    return int(found[0]) if found else sys.maxsize


def _state(path: Path) -> tuple[int, int]:
    """Tells whether a file is as it was."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def iteration_of(path: Path) -> int:
    """The last iteration in a checkpoint; by its name where the file does not say."""
    return _iteration(path, *_state(path))


@lru_cache
def _iteration(path: Path, size: int, changed: int) -> int:
    try:
        state = read(str(path), mmap=True)  # of the best checkpoint the trainer alone tells it
        iteration = state.get("iteration", state.get("trainer", {}).get("iteration"))
    except (ValueError, OSError):  # whoever takes it for the newest will say why it is none
        iteration = None
    return iteration if isinstance(iteration, int) else _number(path)


@lru_cache
def _fault(path: Path, size: int, changed: int) -> str:
    """What is wrong with a checkpoint; reads all of it, once per state."""
    try:
        check_whole(str(path))
    except (ValueError, OSError) as error:
        return str(error)
    return ""
