"""Files that could not be used: counted where batches are handed out, and named in a report."""

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

logger = logging.getLogger(__name__)

Counts = dict[str, tuple[int, str]]
"""file -> how often it was skipped, and what is wrong with it."""


def add_counts(parts: Iterable[Counts]) -> Counts:
    """Adds up the counts of several processes, in the order in which files were met."""
    total: Counts = {}
    for part in parts:
        for file, (count, reason) in part.items():
            total[file] = (total.get(file, (0, ""))[0] + count, reason)
    return total


class BadFiles(HookBase):
    """The files that the loaders of a job have skipped, as far as this process knows; the trainer
    logs them when training ends, whatever ends it.

    Counts are shared whenever a checkpoint is saved, and are part of it, so that a resumed run goes
    on counting. Where an error ends the run, the report is of what the main process knows: all up
    to the last checkpoint, and since then its own.

    Args:
        limit: how many different files may be skipped.
    Attributes:
        shared: what all processes know: counts by file up to the last checkpoint.
        own: what this one has met since.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.shared: Counts = {}
        self.own: Counts = {}

    @property
    def counts(self) -> Counts:
        """All that is known, in the order in which files were met."""
        return add_counts([self.shared, self.own])

    def after_train(self) -> None:
        if comm.is_main_process() and self.counts:
            logger.warning(self.report())

    def state_dict(self) -> dict[str, Any]:
        """Counts of all processes, which must all call it."""
        self.shared, self.own = add_counts([self.shared, *comm.all_gather(self.own)]), {}
        return {file: list(entry) for file, entry in self.shared.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.shared = {file: (n, why) for file, (n, why) in state_dict.items()}

    def add(self, reasons: Mapping[str, str], skipped: int = 1) -> list[str]:
        """Counts the files of one draw.

        Returns: the files that were not known before.
        Raises: ValueError: there are more than ``limit`` now.
        """
        new = [file for file in reasons if file not in self.counts]
        met = {file: (skipped, reason) for file, reason in reasons.items()}
        self.own = add_counts([self.own, met])
        if len(self.counts) > self.limit:
            raise ValueError(
                f"{self.report()}\nThese are more than DATALOADER.MAX_BAD_FILES {self.limit}; "
                "repair them, take them out of the set, or set a higher limit"
            )
        return new

    def report(self) -> str:
        """A line for each file."""
        lines = [f"  {file} {why} [skipped {n} times]" for file, (n, why) in self.counts.items()]
        return "\n".join([f"{len(lines)} files could not be used:", *lines])
