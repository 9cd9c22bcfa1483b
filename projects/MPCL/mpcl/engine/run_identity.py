"""Whether a run that goes on from a checkpoint is still the same run."""

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.utils import comm

from ..checkpoint.weight_files import read

logger = logging.getLogger(__name__)


def run_identity(cfg, world_size: int | None = None) -> dict[str, int | str]:
    """What decides, beside the files, which images and labels each iteration draws on each rank;
    the method; and the set whose scores metrics.json does not name.

    Args:
        world_size: processes of the job; None = as many as there are.
    """
    test = {"first of DATASETS.TEST": cfg.DATASETS.TEST[0]} if cfg.DATASETS.TEST else {}
    return {
        **test,
        "SEED": cfg.SEED,
        "number of processes": comm.get_world_size() if world_size is None else world_size,
        "SOLVER.IMS_PER_BATCH": cfg.SOLVER.IMS_PER_BATCH,
        "DATASETS.SHARES": repr([(name, float(share)) for name, share in cfg.DATASETS.SHARES]),
        "SELF_TRAINING.ENABLED": cfg.SELF_TRAINING.ENABLED,
        "PROTOTYPES.TYPE": cfg.PROTOTYPES.TYPE,
        "digest of classes and label_map of DATASETS.TRAIN": _labels(cfg.DATASETS.TRAIN),
    }


def _labels(names) -> str:
    described = []
    for name in names:
        metadata = MetadataCatalog.get(name)
        label_map = metadata.get("label_map") or {}
        described.append((metadata.get("stuff_classes"), sorted(map(repr, label_map.items()))))
    return hashlib.sha256(repr(described).encode()).hexdigest()[:8]


def check_checkpoint(path: str, cfg, world_size: int) -> list[str]:
    """:func:`check_same_run` with a checkpoint's file, of which no tensor is read.

    Returns: what is legitimate but seldom meant, in sentences.
    Raises: ValueError: it is another run's, or has gone further than this one shall.
    """
    content = read(path, mmap=True)
    trainer, iteration = content.get("trainer"), content.get("iteration")
    if isinstance(trainer, Mapping) and isinstance(trainer.get("run"), Mapping):
        check_same_run(trainer["run"], cfg, world_size)
    done = iteration + 1 if isinstance(iteration, int) else 0
    if done > cfg.SOLVER.MAX_ITER:
        raise ValueError(
            f"{path} has done {done} iterations, and SOLVER.MAX_ITER is {cfg.SOLVER.MAX_ITER}: "
            "nothing is left to train. Raise SOLVER.MAX_ITER, or evaluate with --eval-only --resume"
        )
    if done == cfg.SOLVER.MAX_ITER:
        return [f"{path} is of the last iteration: the run is evaluated, not trained"]
    return []


def check_same_run(saved: Mapping[str, Any], cfg, world_size: int | None = None) -> None:
    """Compares a checkpoint's :func:`run_identity` with the present one.

    Raises: ValueError: they differ, and SOLVER.RESUME_CHANGED does not allow it.
    """
    changed = [
        f"{key} was {saved[key]} and is {value}"
        for key, value in run_identity(cfg, world_size).items()
        if saved.get(key, value) != value  # of earlier versions it holds less
    ]
    if changed and not cfg.SOLVER.RESUME_CHANGED:
        raise ValueError(
            f"Cannot resume: {'; '.join(changed)}. The run would draw other images, label them "
            "otherwise, learn by another method or have its scores so far taken for another set's. "
            "Restore these values; or go on all the same with SOLVER.RESUME_CHANGED True; or start "
            "a new run from its weights with MODEL.WEIGHTS and another OUTPUT_DIR."
        )
    if changed:
        logger.warning(f"Resuming although {'; '.join(changed)} (SOLVER.RESUME_CHANGED)")
