#!/usr/bin/env python3
"""Makes Cityscapes ready: train-id labels, without the cityscapesscripts; class statistics."""

import argparse
import sys

from mpcl.data.sets.driving_classes import CITYSCAPES_IDS
from mpcl.data.sets.preparation import (
    Conversion,
    argument_parser,
    convert_labels,
    count_classes,
    run_script,
)
from mpcl.data.sets.registration import datasets_root

EPILOG = """
expects   <root>/cityscapes/leftImg8bit/{train,val}/<city>/*_leftImg8bit.png
          <root>/cityscapes/gtFine/{train,val}/<city>/*_gtFine_labelIds.png
writes    <root>/cityscapes/gtFine/{train,val}/<city>/*_gtFine_labelTrainIds.png
--statistics
          <root>/cityscapes/gtFine/train/class_statistics_cityscapes_fine_sem_seg_train.npz

As a target, Cityscapes needs train ids for evaluation only; training reads none of them.
--statistics is for Cityscapes as the source (to ACDC, to Dark Zurich).
<root> is $DETECTRON2_DATASETS, or ./datasets if that is not set.
An interrupted run is continued by the same command; to redo a file, delete it.
Download: https://www.cityscapes-dataset.com ; see datasets/README.md.
"""


def prepare(arguments: argparse.Namespace) -> None:
    for split in ("train", "val"):
        folder = datasets_root() / "cityscapes" / "gtFine" / split
        labels = Conversion(folder, "_labelIds.png", "_labelTrainIds.png", CITYSCAPES_IDS)
        convert_labels(labels, arguments.workers)
    if arguments.statistics:
        count_classes("cityscapes_fine_sem_seg_train", arguments.workers)


def main() -> int:
    parser = argument_parser(__doc__, EPILOG)
    parser.add_argument(
        "--statistics", action="store_true", help="count the classes of the train split too"
    )
    return run_script(prepare, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
