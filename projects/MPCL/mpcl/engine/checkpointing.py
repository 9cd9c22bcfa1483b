"""The hooks that save checkpoints: at intervals, at the end and when a run is asked to stop; and,
on request, the best one by labels."""

import logging
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils import comm

from ..checkpoint.training import FINAL, SELECTED, TrainingCheckpointer
from ..checkpoint.weight_files import read
from .preemption import Preempted, StopSignals

logger = logging.getLogger(__name__)


class CheckpointHook(HookBase):
    """Saves every ``period`` iterations, at the end, and when the run is asked to stop.

    Hooks before this one have finished the iteration when it is saved. What those after it
    (evaluation, log line) would have done is lost if the process is killed in between.
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
            raise Preempted

    def after_train(self) -> None:
        self.signals.restore()


class _Named(logging.LoggerAdapter):
    """Says of every number what it is."""

    def process(self, msg: str, kwargs: MutableMapping[str, Any]):
        return f"Selection on labels: {msg}", kwargs


class SelectionHook(hooks.BestCheckpointer):
    """Keeps the checkpoint with the highest score on a labelled set, beside the last one.

    After the evaluation hook. The file holds under ``selection`` by which score it was chosen; a
    resumed run compares with that.
    """

    def __init__(self, checkpointer: TrainingCheckpointer, period: int, metric: str) -> None:
        """
        Args:
            period: iterations between two evaluations.
            metric: key of the score in metrics.json.
        """
        super().__init__(period, self, metric, file_prefix=SELECTED.removesuffix(".pth"))
        self._logger = _Named(logger)
        self.checkpointer = checkpointer

    def before_train(self) -> None:
        file = Path(self.checkpointer.save_dir) / SELECTED
        if self.trainer.start_iter and file.is_file():
            selection = read(str(file)).get("selection", {})
            if selection.get("metric") == self._val_metric:
                self._update_best(selection["score"], selection["iterations"])

    def save(self, name: str, iteration: int) -> None:
        """What Detectron2's hook calls to write the checkpoint."""
        score, _ = self.trainer.storage.latest()[self._val_metric]
        done = min(self.trainer.iter + 1, self.trainer.max_iter)
        selection = {"metric": self._val_metric, "score": score, "iterations": done}
        self.checkpointer.save(name, iteration=done - 1, selection=selection)
