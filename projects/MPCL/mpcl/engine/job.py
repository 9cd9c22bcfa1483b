"""A job of ``tools/train_net.py``, from its arguments to its end: a training or an evaluation.

``args`` has what its command line takes: ``config_file``, ``opts`` (KEY VALUE pairs), ``resume``,
``overwrite``, ``eval_only``, ``debug``, and Detectron2's numbers of processes and machines.
"""

import logging
import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.logger import setup_logger

from ..checkpoint.training import TrainingCheckpointer, checkpoints_in
from ..config import default_config, get_cfg_from
from ..config.preflight import preflight
from ..config.reading import get, leaves
from ..data.sets.classes import classes_of, write_classes
from ..evaluation.run_record import changed_settings, record_session, versions
from ..evaluation.runs import CONFIG
from ..predict.loading import load_networks
from ..utils.atomic_write import write_atomically
from ..utils.cli import user_errors, without_traceback
from ..utils.host_memory import keep_freed_memory
from .evaluate import evaluate_networks
from .guards import EXIT_DIVERGED, Diverged
from .launch import is_restart, launch_job
from .run_identity import check_checkpoint
from .run_lock import only_run_in
from .trainer import AdaptationTrainer

logger = logging.getLogger(__name__)

_PROGRAM = "train_net.py"


def run_job(args: Namespace) -> None:
    """Looks at what was given, then trains or evaluates on every process; a user's mistake ends it
    with one message and status 2."""
    silent = int(os.environ.get("LOCAL_RANK", 0)) > 0
    with user_errors(_PROGRAM, args.debug, silent=silent):
        args.notes = check(args)
        device = get_cfg_from(args.config_file, args.opts).MODEL.DEVICE
    launch_job(run_process, args, device=device)


def check(args: Namespace) -> list[str]:
    """What can be known before anything is started or written; returns notes for the log."""
    cfg = get_cfg_from(args.config_file, args.opts)
    processes = int(os.environ.get("WORLD_SIZE", args.num_gpus * args.num_machines))
    resumed = None
    if args.resume or is_restart():
        resumed = TrainingCheckpointer(None, cfg.OUTPUT_DIR).get_checkpoint_file()
    elif not args.eval_only and not args.overwrite:
        refuse_to_overwrite(cfg.OUTPUT_DIR)
    notes = preflight(
        cfg,
        world_size=processes,
        local_processes=int(os.environ.get("LOCAL_WORLD_SIZE", args.num_gpus)),
        eval_only=args.eval_only,
        resumed=resumed,
    )
    if resumed and not args.eval_only:
        notes += check_checkpoint(resumed, cfg, processes)
        notes += [
            f"the run goes on with {key} {now}; it was {then}"
            for key, (then, now) in changed_settings(cfg).items()
        ]
    return notes


def refuse_to_overwrite(folder: str) -> None:
    """Raises ValueError where a run has left checkpoints or scores."""
    scores = Path(folder) / "metrics.json"
    if checkpoints_in(folder) or (scores.is_file() and scores.stat().st_size):
        raise ValueError(
            f"OUTPUT_DIR {folder} holds a run already. Go on with it: --resume; keep it: choose "
            "another OUTPUT_DIR; train anew in its place: --overwrite"
        )


def run_process(args: Namespace):
    """One process of the job; returns the scores."""
    train_loop = logging.getLogger("detectron2.engine.train_loop")  # logs what ends a training
    if args.debug:
        train_loop.removeFilter(without_traceback)
    else:
        train_loop.addFilter(without_traceback)
    args.resume = args.resume or (not args.eval_only and is_restart())
    with ExitStack() as held:
        # What is wrong with a start is wrong for every process of a machine: one says so.
        with user_errors(_PROGRAM, args.debug, silent=comm.get_local_rank() > 0):
            cfg = set_up(args, held)
            if args.eval_only:
                run = partial(evaluate_networks, load_networks(cfg, resume=args.resume))
            else:
                trainer = AdaptationTrainer(cfg)
                trainer.resume_or_load(resume=args.resume)
                run = trainer.train
            # Only now: a start that is refused changes nothing of the run that is there.
            if comm.is_main_process():
                describe(cfg, args)
        with user_errors(_PROGRAM, args.debug):  # such as a bad file, which one process meets
            try:
                return run()
            except Diverged as error:
                raise SystemExit(EXIT_DIVERGED) from error  # the trainer has logged it


def set_up(args: Namespace, held: ExitStack) -> CfgNode:
    """The config of a process, once its log is open; the output folder's lock goes to ``held``."""
    cfg = get_cfg_from(args.config_file, args.opts)
    cfg.freeze()
    if comm.is_main_process() and not args.eval_only:
        held.enter_context(only_run_in(cfg.OUTPUT_DIR))
    device = torch.device(cfg.MODEL.DEVICE)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # its memory is logged; timers wait for it
    start_process(cfg, eval_only=args.eval_only)
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    logger.info(f"Device {cfg.MODEL.DEVICE}, {precision_in_words(cfg)}; output in {cfg.OUTPUT_DIR}")
    for note in args.notes:
        logger.warning(note)
    return cfg


def describe(cfg: CfgNode, args: Namespace) -> None:
    """Leaves what ran in OUTPUT_DIR: ``config.yaml``, ``classes.json`` and, of a training, its
    entry in ``run.json``. An evaluation leaves the description of a run as it is."""
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CONFIG
    if args.eval_only and file.exists():
        return
    if not args.eval_only:
        record_session(cfg, args.config_file, resume=args.resume)
    write_atomically(file, cfg.dump().encode())
    write_classes(folder, classes_of(cfg))
    logger.info(f"The whole config is in {file}")


def precision_in_words(cfg: CfgNode) -> str:
    """What the log says about the arithmetic of the forward passes."""
    if cfg.SOLVER.AMP.ENABLED:
        return f"{cfg.SOLVER.AMP.PRECISION} autocast forward, float32 losses and prototypes"
    tf32 = cfg.MODEL.DEVICE != "cpu" and torch.backends.cudnn.allow_tf32
    return "float32" + (" (convolutions in TF32, where the GPU has it)" if tf32 else "")


def start_process(cfg: CfgNode, *, eval_only: bool = False) -> None:
    """Detectron2's ``default_setup`` with a log for people: loggers and random numbers.

    The log shows where the config differs from the project's defaults; :func:`describe` writes all
    of it.
    """
    for name in ("fvcore", "detectron2", "mpcl"):
        setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name=name)
    # Detectron2's note on how file lists are packed is noise.
    logging.getLogger("detectron2.data.common").setLevel(logging.WARNING)
    logger.info("Command: " + shlex.join(sys.argv))
    logger.info(", ".join(f"{name} {version}" for name, version in versions().items()))
    logger.info(f"Process {comm.get_rank()} of {comm.get_world_size()}")
    changed = "\n".join(f"  {key}: {value!r}" for key, value in changed_keys(cfg))
    logger.info(f"Config, where it differs from the defaults (docs/CONFIG.md):\n{changed}")
    seed_all_rng(cfg.SEED + comm.get_rank())
    if not eval_only:
        torch.backends.cudnn.benchmark = cfg.CUDNN_BENCHMARK


def changed_keys(cfg: CfgNode) -> Iterator[tuple[str, object]]:
    """Dotted keys with another value than the project's defaults, and that value."""
    defaults = default_config()
    for key in leaves(cfg):
        value = get(cfg, key)
        if value != get(defaults, key):
            yield key, value
