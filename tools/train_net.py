#!/usr/bin/env python
"""Trains and evaluates any config of the project.

  python tools/train_net.py --config-file CONFIG [--num-gpus N] [KEY VALUE ...]
  python tools/train_net.py --config-file CONFIG --resume        # from the newest checkpoint
  python tools/train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS output/model_final.pth
  torchrun --nproc-per-node N --max-restarts 3 tools/train_net.py --config-file CONFIG --resume

A folder that holds a run is left alone, unless --resume or --overwrite is given. Two runs cannot
use one folder at a time.

Exit status: 0 finished; 2 something that was given cannot be worked with; 65 diverged (see
diverged.json); 75 asked to stop (SIGTERM, SIGINT) and saved: start again with --resume; else an
error. docs/RELIABILITY.md has more.
"""

import logging
import os
import sys
from contextlib import ExitStack
from pathlib import Path

from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from mpcl.checkpoint.training import TrainingCheckpointer, checkpoints_in
from mpcl.config import get_cfg_from
from mpcl.config.preflight import preflight
from mpcl.engine import AdaptationTrainer
from mpcl.engine.evaluate import evaluate_models
from mpcl.engine.guards import EXIT_DIVERGED, Diverged
from mpcl.engine.launch import is_restart, launch_job
from mpcl.engine.run_identity import check_checkpoint
from mpcl.engine.run_lock import only_run_in
from mpcl.engine.start import start_process
from mpcl.engine.trainer import precision_in_words
from mpcl.evaluation.run_record import record_session
from mpcl.predict.loading import load_networks
from mpcl.utils.cli import DEBUG, DEBUG_HELP, user_errors, without_traceback
from mpcl.utils.host_memory import keep_freed_memory

logger = logging.getLogger("mpcl.train_net")

_HELP = {
    "config_file": "a YAML file, such as projects/MPCL/configs/mic_gauss.yaml",
    "resume": "go on from the newest checkpoint of OUTPUT_DIR, if there is one",
    "opts": "keys of the config and their values, last on the line (docs/CONFIG.md)",
}


def setup(args, held):
    cfg = get_cfg_from(args.config_file, args.opts)
    cfg.freeze()
    if comm.is_main_process() and not args.eval_only:
        held.enter_context(only_run_in(cfg.OUTPUT_DIR))
    start_process(cfg, eval_only=args.eval_only)
    if cfg.MODEL.DEVICE == "cpu":
        keep_freed_memory()
    logger.info(f"Device {cfg.MODEL.DEVICE}, {precision_in_words(cfg)}; output in {cfg.OUTPUT_DIR}")
    for note in args.notes:
        logger.warning(note)
    if comm.is_main_process() and not args.eval_only:
        record_session(cfg, args.config_file, resume=args.resume)
    return cfg


def main(args):
    train_loop = logging.getLogger("detectron2.engine.train_loop")  # logs what ends a training
    (train_loop.removeFilter if args.debug else train_loop.addFilter)(without_traceback)
    args.resume = args.resume or (not args.eval_only and is_restart())
    with ExitStack() as held:
        # What is wrong with a start is wrong for every process of a machine: one says so.
        with user_errors("train_net.py", args.debug, silent=comm.get_local_rank() > 0):
            cfg = setup(args, held)
            if args.eval_only:
                networks = load_networks(cfg, resume=args.resume)
            else:
                trainer = AdaptationTrainer(cfg)
                trainer.resume_or_load(resume=args.resume)
        with user_errors("train_net.py", args.debug):  # such as a bad file, which one process meets
            try:
                if args.eval_only:
                    return evaluate_models(cfg, networks.student, networks.teacher)
                return trainer.train()
            except Diverged as error:
                raise SystemExit(EXIT_DIVERGED) from error  # the trainer has logged it


def parse_args(argv=None):
    parser = default_argument_parser(epilog=__doc__)
    parser.description = "Unsupervised domain-adaptive semantic segmentation with MPCL."
    for action in parser._actions:  # Detectron2's speak of its Python configs and of its trainer
        action.help = _HELP.get(action.dest, action.help)
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="train anew in a folder that holds a run; its checkpoints become *.old.pth",
    )
    parser.add_argument(DEBUG, action="store_true", help=DEBUG_HELP)
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args([word for word in words if word != DEBUG])
    args.debug = DEBUG in words  # also behind the KEY VALUE pairs
    return args


def check(args):
    """What can be known before anything is started or written; returns notes for the log."""
    cfg = get_cfg_from(args.config_file, args.opts)
    processes = int(os.environ.get("WORLD_SIZE", args.num_gpus * args.num_machines))
    resumed = None
    resume = args.resume or is_restart()
    if not resume and not args.eval_only and not args.overwrite:
        refuse_to_overwrite(cfg.OUTPUT_DIR)
    if resume:
        resumed = TrainingCheckpointer(None, cfg.OUTPUT_DIR).get_checkpoint_file()
    notes = preflight(
        cfg,
        world_size=processes,
        local_processes=int(os.environ.get("LOCAL_WORLD_SIZE", args.num_gpus)),
        eval_only=args.eval_only,
        resumed=resumed,
    )
    if resumed and not args.eval_only:
        notes += check_checkpoint(resumed, cfg, processes)
    return notes


def refuse_to_overwrite(folder):
    """Raises ValueError where a run has left checkpoints or scores."""
    scores = Path(folder) / "metrics.json"
    if checkpoints_in(folder) or (scores.is_file() and scores.stat().st_size):
        raise ValueError(
            f"OUTPUT_DIR {folder} holds a run already. Go on with it: --resume; keep it: choose "
            "another OUTPUT_DIR; train anew in its place: --overwrite"
        )


def cli(argv=None):
    args = parse_args(argv)
    with user_errors("train_net.py", args.debug, silent=int(os.environ.get("LOCAL_RANK", 0)) > 0):
        args.notes = check(args)
        device = get_cfg_from(args.config_file, args.opts).MODEL.DEVICE
    launch_job(main, args, device=device)


if __name__ == "__main__":
    cli()
