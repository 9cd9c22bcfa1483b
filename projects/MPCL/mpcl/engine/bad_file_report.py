"""At the end of training: which files were skipped, and how often, over all processes."""

import logging
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.bad_files import BadFiles

logger = logging.getLogger(__name__)


class BadFileReport(HookBase):
    """Logs the skipped files of all processes when training ends, whatever ends it.

    The counts are shared whenever a checkpoint is saved, hence also at the end and at a stop. They
    are part of it, so that a resumed run goes on counting. Where an error ends the run, the report
    is of what the main process knows: all up to the last checkpoint, and since then its own.
    """

    def __init__(self, bad_files: BadFiles) -> None:
        self.bad_files = bad_files

    def after_train(self) -> None:
        if comm.is_main_process() and self.bad_files.counts:
            logger.warning(self.bad_files.report())

    def state_dict(self) -> dict[str, Any]:
        """All processes must call it."""
        self.bad_files.share(comm.all_gather)
        return {file: list(entry) for file, entry in self.bad_files.shared.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.bad_files.shared = {file: (n, why) for file, (n, why) in state_dict.items()}
