"""What a process does before it trains or evaluates, and the first lines of its log."""

import logging
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..config import add_mpcl_config
from ..config.reading import get, leaves
from ..data.sets.classes import classes_of, write_classes
from ..evaluation.run_record import versions
from ..utils.atomic_write import write_atomically

logger = logging.getLogger(__name__)


def start_process(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Detectron2's ``default_setup`` with a log for people: loggers, ``config.yaml``, random
    numbers.

    The whole config is in OUTPUT_DIR/config.yaml alone; the log shows where it differs from the
    project's defaults.
    """
    for name in ("fvcore", "detectron2", "mpcl"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    # How a list of files is packed says nothing to whom trains.
    logging.getLogger("detectron2.data.common").setLevel(logging.WARNING)
    logger.info("Command: " + shlex.join(sys.argv))
    logger.info(", ".join(f"{name} {version}" for name, version in versions().items()))
    logger.info(f"Process {comm.get_rank()} of {comm.get_world_size()}")
    changed = "\n".join(f"  {key}: {value!r}" for key, value in changed_keys(cfg))
    logger.info(f"Config, where it differs from the defaults (docs/CONFIG.md):\n{changed}")
    if comm.is_main_process():
        file = Path(cfg.OUTPUT_DIR) / "config.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, cfg.dump().encode())
        write_classes(file.parent, classes_of(cfg))
        logger.info(f"The whole config is in {file}")
    seed_all_rng(None if cfg.SEED < 0 else cfg.SEED + comm.get_rank())
    if not eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def changed_keys(cfg: CfgNode) -> Iterator[tuple[str, object]]:
    """Dotted keys with another value than the project's defaults, and that value."""
    defaults = get_cfg()
    add_mpcl_config(defaults)
    for key in leaves(cfg):
        value = get(cfg, key)
        if value != get(defaults, key):
            yield key, value
