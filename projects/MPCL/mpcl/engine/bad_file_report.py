"""At the end of training: which files were skipped, and how often."""

import logging
from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm

from ..data.bad_files import BadFiles

logger = logging.getLogger(__name__)


class BadFileReport(HookBase):
    """Logs the skipped files of this rank when training ends, whatever ends it.

    The counts of the main process are part of the checkpoint, so that a resumed run reports those
    of its earlier parts as well.
    """

    def __init__(self, bad_files: BadFiles) -> None:
        self.bad_files = bad_files

    def after_train(self) -> None:
        if self.bad_files.counts:
            logger.warning(self.bad_files.report())

    def state_dict(self) -> dict[str, Any]:
        return {file: list(entry) for file, entry in self.bad_files.counts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if comm.is_main_process():
            self.bad_files.counts = {file: (n, why) for file, (n, why) in state_dict.items()}
