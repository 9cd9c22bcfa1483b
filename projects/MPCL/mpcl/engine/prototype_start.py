"""Where prototypes were when they started, kept beside the checkpoints: drift is measured from
there."""

from pathlib import Path

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from ..checkpoint.weight_files import read
from ..prototypes.centroid import CentroidPrototypes
from ..utils.atomic_write import write_atomically

START = "prototypes_start.pth"


def build_prototype_start(cfg, student: nn.Module) -> "PrototypeStart | None":
    """For the main process; None for a student without prototypes."""
    if student.prototype_head is None:
        return None
    file = Path(cfg.OUTPUT_DIR) / START
    return PrototypeStart(
        student.prototype_head.prototypes, file, cfg.PROTOTYPES.INIT.ITER, cfg.LOG_PERIOD
    )


class PrototypeStart(HookBase):
    """Writes the means of a class in the iteration in which they start (their first update is in
    them already).

    The file holds ``mean`` (C, K, D) and ``started`` (C,) bool. The mean is NaN of a class that had
    started before the record was kept: of a resumed run whose file is gone.

    Args:
        first: iteration at which prototypes start.
        period: iterations between two looks of the learner at classes that come later; only then
            does the hook read from the device.
    """

    def __init__(self, prototypes: CentroidPrototypes, file: Path, first: int, period: int) -> None:
        self.prototypes, self.file = prototypes, file
        self.first, self.period = first, period

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:
            self.file.unlink(missing_ok=True)
        elif not self.file.is_file() and (started := self.prototypes.started.cpu()).any():
            self._write(torch.full_like(self.prototypes.mean, torch.nan).cpu(), started)

    def after_step(self) -> None:
        iteration = self.trainer.iter
        if iteration != self.first and (iteration + 1) % self.period:
            return
        started = self.prototypes.started.cpu()
        mean, known = read_start(self.file) or (torch.zeros_like(self.prototypes.mean).cpu(), None)
        new = started if known is None else started & ~known
        if new.any():
            mean = torch.where(new.view(-1, 1, 1), self.prototypes.mean.cpu(), mean)
            self._write(mean, started if known is None else started | known)

    def _write(self, mean: Tensor, started: Tensor) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        content = {"mean": mean, "started": started}
        write_atomically(self.file, lambda target: torch.save(content, target))


def read_start(file: Path) -> tuple[Tensor, Tensor] | None:
    """``mean`` and ``started``; None where there is no such file.

    Raises: ValueError: the file is no record of a start.
    """
    if not file.is_file():
        return None
    content = read(str(file))
    found = content.get("mean"), content.get("started")
    if not all(isinstance(value, Tensor) for value in found):
        raise ValueError(f"{file} is no record of where prototypes started; delete it")
    return found
