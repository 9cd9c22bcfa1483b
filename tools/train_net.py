#!/usr/bin/env python
"""Trains and evaluates any config of the project.

python tools/train_net.py --config-file projects/MPCL/configs/daformer_gauss.yaml [--num-gpus N]
[KEY VALUE ...] python tools/train_net.py --config-file ... --resume               # go on from the
last checkpoint python tools/train_net.py --config-file ... --eval-only MODEL.WEIGHTS
output/model_final.pth
"""

import logging

from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from mpcl.config import get_cfg_from
from mpcl.engine import AdaptationTrainer
from mpcl.engine.build import precision_in_words
from mpcl.engine.evaluate import evaluate_checkpoint

logger = logging.getLogger("mpcl.train_net")


def setup(args):
    cfg = get_cfg_from(args.config_file, args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="mpcl")
    logger.info(f"Device {cfg.MODEL.DEVICE}, {precision_in_words(cfg)}; output in {cfg.OUTPUT_DIR}")
    return cfg


def main(args):
    cfg = setup(args)
    if args.eval_only:
        return evaluate_checkpoint(cfg, resume=args.resume)
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    return trainer.train()


def parse_args(argv=None):
    parser = default_argument_parser(epilog=__doc__)
    parser.description = "Unsupervised domain-adaptive semantic segmentation with MPCL."
    return parser.parse_args(argv)


if __name__ == "__main__":
    args = parse_args()
    launch(
        main,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )
