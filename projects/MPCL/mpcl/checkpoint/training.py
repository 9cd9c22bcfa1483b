"""Checkpoints that are whole or not there."""

import logging
import re
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm

from ..utils.atomic_write import TEMPORARY, write_atomically
from .weights import WeightsCheckpointer

logger = logging.getLogger(__name__)

POINTER = "last_checkpoint"
FINAL = "model_final.pth"
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
        """Writes ``<name>.pth`` and points to it. All ranks must call it: the state is gathered.

        Raises:
            OSError: it could not be written (disk full, quota, read-only). The checkpoints before
                it are as they were; the message names the newest.
        """
        content = {"model": self.model.state_dict()}
        content |= {key: obj.state_dict() for key, obj in self.checkpointables.items()} | extra
        if not self.save_dir or not self.save_to_disk:
            return
        target = file = Path(self.save_dir) / f"{name}.pth"
        logger.info(f"Saving checkpoint to {file}")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, lambda opened: torch.save(content, opened))
            target = file.with_name(POINTER)
            self.tag_last_checkpoint(file.name)
        except OSError as error:
            earlier = self.get_checkpoint_file()
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
        """Lets the checkpoints of an earlier run in this folder be forgotten, though not removed: a
        restart must not go on from them."""
        if any(self._candidates()):
            self.tag_last_checkpoint("")

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As fvcore's. All ranks must call it.

        Raises:
            ValueError: the ranks do not find the same checkpoint, and would go different ways.
        """
        if resume:
            found = [Path(file).name for file in comm.all_gather(self.get_checkpoint_file())]
            if len(set(found)) > 1:
                raise ValueError(
                    f"the processes find different checkpoints in {self.save_dir}: "
                    f"{', '.join(name or 'none' for name in found)}, in the order of their ranks; "
                    "expected OUTPUT_DIR to be one folder that all machines share"
                )
        return super().resume_or_load(path, resume=resume)

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        """The newest whole checkpoint, "" if there is none.

        ``last_checkpoint`` decides, except where it names a broken file or a kill came between
        checkpoint and pointer: then a whole file that was written after it.
        """
        for path in self._candidates():
            stat = path.stat()
            if _is_whole(path, stat.st_size, stat.st_mtime_ns):
                return str(path)
            logger.warning(f"{path} is damaged; looking for an earlier checkpoint")
        return ""

    def _candidates(self) -> Iterator[Path]:
        """The likeliest first."""
        if not self.save_dir:
            return
        folder, pointer = Path(self.save_dir), Path(self.save_dir) / POINTER
        pointed, since = "", -1
        if pointer.is_file():
            # The name alone: a folder from elsewhere cannot point out of itself.
            pointed = Path(pointer.read_text(errors="replace").strip()).name
            since = pointer.stat().st_mtime_ns
        known = [p for p in folder.glob("model_*.pth") if _PERIODIC.fullmatch(p.name)]
        known += [p for p in [folder / FINAL] if p.is_file()]
        newest_first = sorted(known, key=lambda p: (p.stat().st_mtime_ns, p.name), reverse=True)
        yield from (p for p in newest_first if p.stat().st_mtime_ns > since)
        if pointed:
            if (folder / pointed).is_file():
                yield folder / pointed
            yield from (p for p in newest_first if p.name != pointed)

    def _remove_old(self, newest: Path) -> None:
        if not self.keep:
            return
        files = (p for p in newest.parent.glob("model_*.pth") if _PERIODIC.fullmatch(p.name))
        for path in sorted(files, key=lambda p: p.stat().st_mtime_ns)[: -self.keep]:
            if path != newest:
                path.unlink(missing_ok=True)

    def remove_unfinished(self) -> None:
        """Files that a kill has left half-written."""
        for path in Path(self.save_dir).glob(f"*{TEMPORARY}"):
            if path.name.startswith(("model_", POINTER)):
                path.unlink(missing_ok=True)


@lru_cache
def _is_whole(path: Path, size: int, changed: int) -> bool:
    """Whether a torch file is complete and its checksums agree; reads all of it, once per state."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    # NotImplementedError is zipfile's for a damaged header that names an unknown compression.
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError):
        return False
