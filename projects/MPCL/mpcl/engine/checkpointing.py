"""The hook that saves checkpoints, at intervals, at the end, and when a run is asked to stop."""

import logging

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..checkpoint.training import FINAL, TrainingCheckpointer
from .preemption import Preempted, StopSignals

logger = logging.getLogger(__name__)


class CheckpointHook(HookBase):
    """Saves every ``period`` iterations, at the end, and when the run is asked to stop.

    Hooks before this one have finished their iteration when it is saved. Those after it
    (evaluation, log line) have not, and a run that a kill ends in between does not make up for
    them.
    """

    def __init__(self, checkpointer: TrainingCheckpointer, period: int) -> None:
        self.checkpointer = checkpointer
        self.period = period
        self.signals = StopSignals()

    def before_train(self) -> None:
        if self.checkpointer.save_to_disk:
            self.checkpointer.remove_unfinished()
            if self.trainer.start_iter == 0:
                self.checkpointer.start_afresh()
        self.signals.install()

    def after_step(self) -> None:
        """Raises Preempted, on all ranks alike, if one of them was asked to stop."""
        done = self.trainer.iter + 1
        stop, last = self.signals.requested(), done >= self.trainer.max_iter
        name = f"model_{self.trainer.iter:07d}"
        if done % self.period == 0 or (stop and not last):
            self.checkpointer.save(name, iteration=self.trainer.iter)
        if last:
            name = FINAL.removesuffix(".pth")
            self.checkpointer.save(name, iteration=self.trainer.iter)
        if stop:
            comm.synchronize()  # whoever ends first may end the others: not while one is saving
            logger.warning(f"Asked to stop after iteration {self.trainer.iter}: saved {name}.pth")
            raise Preempted(f"{name}.pth")

    def after_train(self) -> None:
        self.signals.restore()
