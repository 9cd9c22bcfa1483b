#!/usr/bin/env python3
"""Makes GTA5 ready for training: train-id labels, class statistics, a resized copy if wanted."""

import argparse
import sys

from mpcl.data.sets.driving_classes import CITYSCAPES_IDS
from mpcl.data.sets.preparation import (
    RESIZE_BOX,
    Conversion,
    argument_parser,
    convert_labels,
    count_classes,
    resize_set,
    run_script,
)
from mpcl.data.sets.registration import datasets_root

TRAIN_SUFFIX = "_labelTrainIds.png"
EPILOG = """
expects   <root>/gta5/images/00001.png ...     the frames
          <root>/gta5/labels/00001.png ...     palette images of the same names
writes    <root>/gta5/labels/00001_labelTrainIds.png ...
          <root>/gta5/labels/class_statistics_gta5_sem_seg_train.npz
--resize  <root>/gta5_resized/{images,labels}/...     the data set gta5_resized_sem_seg_train

<root> is $DETECTRON2_DATASETS, or ./datasets if that is not set.
An interrupted run is continued by the same command; to redo a file, delete it.
Download: https://download.visinf.tu-darmstadt.de/data/from_games/ ; see datasets/README.md.
"""


def prepare(arguments: argparse.Namespace) -> None:
    root = datasets_root()
    labels = Conversion(root / "gta5" / "labels", ".png", TRAIN_SUFFIX, CITYSCAPES_IDS)
    convert_labels(labels, arguments.workers)
    count_classes("gta5_sem_seg_train", arguments.workers)
    if arguments.resize:
        resize_set(
            root / "gta5", root / "gta5_resized", TRAIN_SUFFIX, RESIZE_BOX, arguments.workers
        )
        count_classes("gta5_resized_sem_seg_train", arguments.workers)


def main() -> int:
    parser = argument_parser(__doc__, EPILOG)
    parser.add_argument(
        "--resize",
        action="store_true",
        help="also write a copy at 1280x704 (from 1914x1052), the size at which DAFormer-like "
        "training sees it: nothing is lost, loading is faster. Not for HRDA, which trains larger.",
    )
    return run_script(prepare, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
