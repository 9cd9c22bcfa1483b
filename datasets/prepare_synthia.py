#!/usr/bin/env python3
"""Makes SYNTHIA-RAND-CITYSCAPES ready for training: 8-bit train-id labels, class statistics."""

import argparse
import sys

from mpcl.data.sets.driving_classes import SYNTHIA_IDS
from mpcl.data.sets.preparation import (
    Conversion,
    argument_parser,
    convert_labels,
    count_classes,
    read_synthia_label,
    run_script,
)
from mpcl.data.sets.registration import datasets_root

EPILOG = """
expects   <root>/synthia/RGB/0000000.png ...           the frames
          <root>/synthia/GT/LABELS/0000000.png ...     16-bit labels of the same names
writes    <root>/synthia/GT/LABELS/0000000_labelTrainIds.png ...
          <root>/synthia/GT/LABELS/class_statistics_synthia_sem_seg_train.npz

<root> is $DETECTRON2_DATASETS, or ./datasets if that is not set.
An interrupted run is continued by the same command; to redo a file, delete it.
Download: https://synthia-dataset.net ; see datasets/README.md.
"""


def prepare(arguments: argparse.Namespace) -> None:
    labels = Conversion(
        datasets_root() / "synthia" / "GT" / "LABELS",
        ".png",
        "_labelTrainIds.png",
        SYNTHIA_IDS,
        read_synthia_label,
    )
    convert_labels(labels, arguments.workers)
    count_classes("synthia_sem_seg_train", arguments.workers)


def main() -> int:
    return run_script(prepare, argument_parser(__doc__, EPILOG).parse_args())


if __name__ == "__main__":
    sys.exit(main())
