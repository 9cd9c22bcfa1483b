"""Whether a run that goes on from a checkpoint is still the same run."""

import logging
from collections.abc import Mapping

from detectron2.utils import comm

logger = logging.getLogger(__name__)


def run_identity(cfg) -> dict[str, int]:
    """What decides, beside the data, which images each iteration draws on each rank."""
    return {
        "SEED": cfg.SEED,
        "number of processes": comm.get_world_size(),
        "SOLVER.IMS_PER_BATCH": cfg.SOLVER.IMS_PER_BATCH,
    }


def check_same_run(saved: Mapping[str, int], cfg) -> None:
    """Compares a checkpoint's :func:`run_identity` with the present one.

    Raises:
        ValueError: they differ, and SOLVER.RESUME_CHANGED does not allow it.
    """
    changed = [
        f"{key} was {saved[key]} and is {value}"
        for key, value in run_identity(cfg).items()
        if saved[key] != value
    ]
    if changed and not cfg.SOLVER.RESUME_CHANGED:
        raise ValueError(
            f"Cannot resume: {'; '.join(changed)}. The run would draw other images than the one it "
            "goes on from. Restore these values; or go on all the same with SOLVER.RESUME_CHANGED "
            "True; or start a new run from the checkpoint's weights with MODEL.WEIGHTS and another "
            "OUTPUT_DIR."
        )
    if changed:
        logger.warning(f"Resuming although {'; '.join(changed)} (SOLVER.RESUME_CHANGED)")
