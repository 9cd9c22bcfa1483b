"""Whether a run that goes on from a checkpoint is still the same run."""

import logging
from collections.abc import Mapping

import torch
from detectron2.utils import comm

logger = logging.getLogger(__name__)


def run_identity(cfg, world_size: int | None = None) -> dict[str, int]:
    """What decides, beside the data, which images each iteration draws on each rank.

    Args:
        world_size: processes of the job; None = as many as there are.
    """
    return {
        "SEED": cfg.SEED,
        "number of processes": comm.get_world_size() if world_size is None else world_size,
        "SOLVER.IMS_PER_BATCH": cfg.SOLVER.IMS_PER_BATCH,
    }


def check_checkpoint(path: str, cfg, world_size: int) -> None:
    """:func:`check_same_run` with a checkpoint's file, of which no tensor is read."""
    content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if saved := content.get("trainer", {}).get("run"):
        check_same_run(saved, cfg, world_size)


def check_same_run(saved: Mapping[str, int], cfg, world_size: int | None = None) -> None:
    """Compares a checkpoint's :func:`run_identity` with the present one.

    Raises:
        ValueError: they differ, and SOLVER.RESUME_CHANGED does not allow it.
    """
    changed = [
        f"{key} was {saved[key]} and is {value}"
        for key, value in run_identity(cfg, world_size).items()
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
