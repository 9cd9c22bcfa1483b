#!/usr/bin/env python
"""Predicts the test images of ACDC or Dark Zurich and packs them for the benchmark's test server.

  python tools/submit.py --run output/cityscapes_to_acdc/daformer_gauss --dataset acdc_images_test
  python tools/submit.py --config-file CONFIG --weights model_final.pth \\
      --dataset dark_zurich_images_test --output dark_zurich.zip [KEY VALUE ...]
  python tools/submit.py --check acdc.zip --dataset acdc_images_test

The package is a zip of 8-bit PNGs with train ids (0..18, no conversion to label ids) at the images'
own size. It is opened again and checked: every test image has exactly one prediction, of its size,
with known ids, and nothing else is inside. Exit status: 0 if the package is fit, 1 with a list of
what is missing or wrong.

Upload to   ACDC         https://acdc.vision.ee.ethz.ch/submit   (choose "all", or one condition)
            Dark Zurich  the competition that the data set's page links to

Names. Nothing here was tried on the servers. Participants report that Dark Zurich's looks for
<sequence>_frame_<number>*.png in three folders, labelTrainIds, labelTrainIds_invalid and confidence
(16 bits); the last two are for its uncertainty-aware scores, and are filled such that these equal
the IoU. For ACDC they quote the id space and the size; that it finds files by the same pattern, in
a folder labelTrainIds, is only what published code writes. Should a server ask for other names,
give them with --names, for instance "{frame}_gt_labelTrainIds.png".
"""

import argparse
from pathlib import Path

from detectron2.utils.logger import setup_logger

from mpcl.config import get_cfg_from
from mpcl.predict.loading import load_networks, load_run
from mpcl.predict.submission import NAMES, check_submission, folders_of, frames_of, write_submission
from mpcl.utils.cli import add_debug_option, command_line


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--run", type=Path, help="output folder of a run; its newest checkpoint")
    what.add_argument("--config-file", help="with --weights, instead of a run")
    what.add_argument("--check", type=Path, metavar="ZIP", help="check this package and stop")
    parser.add_argument("--weights", help="checkpoint for --config-file")
    parser.add_argument(
        "--dataset",
        required=True,
        help="acdc_images_test, acdc_{fog,night,rain,snow}_images_test or dark_zurich_images_test",
    )
    parser.add_argument("--output", type=Path, help="zip to write (default: <dataset>.zip)")
    parser.add_argument(
        "--student", action="store_true", help="predict with the student (default: the teacher)"
    )
    parser.add_argument("--names", default=NAMES, help="of the files (default: %(default)s)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="of the config")
    add_debug_option(parser)
    args = parser.parse_args(argv)
    if (args.config_file is None) != (args.weights is None):
        parser.error("--config-file and --weights go together")
    return args


def load(args: argparse.Namespace):
    """(config, network) of the run or checkpoint."""
    if args.run is not None:
        cfg, student, teacher = load_run(args.run, args.opts)
    else:
        cfg = get_cfg_from(args.config_file, [*args.opts, "MODEL.WEIGHTS", args.weights])
        student, teacher = load_networks(cfg)
    return cfg, student if args.student or teacher is None else teacher


@command_line
def main(argv=None) -> int:
    args = parse_args(argv)
    package = args.check or args.output or Path(f"{args.dataset}.zip")
    folders = ", ".join(folders_of(args.dataset))
    number = f"{len(frames_of(args.dataset))} images, {folders}"
    if args.check is not None:
        faults = check_submission(package, args.dataset)
    else:
        setup_logger(name="mpcl")
        faults = write_submission(package, *load(args), args.dataset, args.names)
    print("\n".join(f"FAULT {fault}" for fault in faults), end="\n" * bool(faults))
    print(f"{package}: {args.dataset}, {number}: {len(faults) or 'no'} faults")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
