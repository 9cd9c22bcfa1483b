#!/usr/bin/env python
"""Trains and evaluates any config of the project.

  python tools/train_net.py --config-file CONFIG [--num-gpus N] [KEY VALUE ...]
  python tools/train_net.py --config-file CONFIG --resume        # from the newest checkpoint
  python tools/train_net.py --config-file CONFIG --eval-only MODEL.WEIGHTS output/model_final.pth
  torchrun --nproc-per-node N --max-restarts 3 tools/train_net.py --config-file CONFIG --resume

Exit status: 0 finished; 2 something that was given cannot be worked with; 65 diverged (see
diverged.json); 75 asked to stop (SIGTERM, SIGINT) and saved: start again with --resume; else an
error. docs/RELIABILITY.md has more.
"""

import logging
import os
import sys

from detectron2.engine import default_argument_parser, default_setup
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from mpcl.config import get_cfg_from
from mpcl.engine import AdaptationTrainer
from mpcl.engine.build import precision_in_words
from mpcl.engine.evaluate import evaluate_checkpoint
from mpcl.engine.guards import EXIT_DIVERGED, Diverged
from mpcl.engine.launch import is_restart, launch_job
from mpcl.engine.run_record import record_session
from mpcl.preflight import preflight
from mpcl.utils.cli import DEBUG, DEBUG_HELP, user_errors

logger = logging.getLogger("mpcl.train_net")


def setup(args):
    cfg = get_cfg_from(args.config_file, args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="mpcl")
    logger.info(f"Device {cfg.MODEL.DEVICE}, {precision_in_words(cfg)}; output in {cfg.OUTPUT_DIR}")
    for note in args.notes:
        logger.warning(note)
    if comm.is_main_process() and not args.eval_only:
        record_session(cfg, args.config_file, resume=args.resume or is_restart())
    return cfg


def main(args):
    with user_errors("train_net.py", args.debug):
        cfg = setup(args)
        if args.eval_only:
            return evaluate_checkpoint(cfg, resume=args.resume)
        trainer = AdaptationTrainer(cfg)
        trainer.resume_or_load(resume=args.resume or is_restart())
        try:
            return trainer.train()
        except Diverged as error:
            raise SystemExit(EXIT_DIVERGED) from error  # the trainer has logged it


def parse_args(argv=None):
    parser = default_argument_parser(epilog=__doc__)
    parser.description = "Unsupervised domain-adaptive semantic segmentation with MPCL."
    parser.add_argument(DEBUG, action="store_true", help=DEBUG_HELP)
    words = sys.argv[1:] if argv is None else argv
    args = parser.parse_args([word for word in words if word != DEBUG])
    args.debug = DEBUG in words  # also behind the KEY VALUE pairs
    return args


def check(args):
    """What can be known before anything is started or written; returns notes for the log."""
    processes = int(os.environ.get("WORLD_SIZE", args.num_gpus * args.num_machines))
    return preflight(
        get_cfg_from(args.config_file, args.opts),
        world_size=processes,
        local_processes=int(os.environ.get("LOCAL_WORLD_SIZE", args.num_gpus)),
        eval_only=args.eval_only,
        resume=args.resume or is_restart(),
    )


def cli(argv=None):
    args = parse_args(argv)
    with user_errors("train_net.py", args.debug):
        args.notes = check(args)
    launch_job(main, args)


if __name__ == "__main__":
    cli()
