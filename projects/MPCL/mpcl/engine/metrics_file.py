"""metrics.json of a run that stops and goes on: every iteration has at most one line."""

import json
import logging
import os
from pathlib import Path

from ..utils.atomic_write import write_atomically

logger = logging.getLogger(__name__)


def start_metrics(path: Path, start_iter: int) -> None:
    """Makes metrics.json fit a run that starts at ``start_iter``.

    Lines of that iteration and later ones, which the run will write again, are dropped, and so is a
    line that a kill has cut off. A run from iteration 0 puts an earlier run's lines aside, as
    ``metrics.old.json``.
    """
    if not path.is_file():
        return
    if start_iter == 0:
        os.replace(path, path.with_name("metrics.old.json"))
        return
    kept = []
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        try:
            iteration = json.loads(line)["iteration"]
        except (json.JSONDecodeError, TypeError, KeyError):
            continue
        if iteration < start_iter:
            kept.append(line)
    if len(kept) < len(lines):
        logger.info(f"{path}: dropped {len(lines) - len(kept)} lines from iteration {start_iter}")
        write_atomically(path, "".join(line + "\n" for line in kept).encode())
