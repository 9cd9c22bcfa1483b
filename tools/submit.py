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
from collections.abc import Sequence
from pathlib import Path

from command_line import add_network_arguments, command_line, make_parser, network_arguments


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--check", type=Path, metavar="ZIP", help="check this package and stop")
    parser.add_argument(
        "--dataset",
        required=True,
        help="acdc_images_test, acdc_{fog,night,rain,snow}_images_test or dark_zurich_images_test",
    )
    parser.add_argument("--output", type=Path, help="zip to write (default: <dataset>.zip)")
    parser.add_argument("--names", help="of the files (default: {folder}/{frame}_rgb_anon.png)")
    add_network_arguments(parser)
    args = parser.parse_args(argv)
    if not args.check:
        args.network = network_arguments(parser, args)
    elif args.run or args.config_file or args.weights:
        parser.error("--check looks at a package that is there, and takes no network")
    return args


@command_line(parse_args)
def main(args: argparse.Namespace) -> int:
    from detectron2.utils.logger import setup_logger

    from mpcl.predict.loading import load_networks, refuse_other_classes
    from mpcl.predict.submission import (
        NAMES,
        check_submission,
        folders_of,
        frames_of,
        write_submission,
    )

    package = args.check or args.output or Path(f"{args.dataset}.zip")
    folders = ", ".join(folders_of(args.dataset))
    number = f"{len(frames_of(args.dataset))} images, {folders}"
    if args.check:
        faults = check_submission(package, args.dataset)
    else:
        setup_logger(name="mpcl")
        networks = load_networks(**args.network)
        refuse_other_classes(networks, args.dataset)
        names = args.names or NAMES
        faults = write_submission(package, networks.cfg, networks.network, args.dataset, names)
    for fault in faults:
        print(f"FAULT {fault}")
    print(f"{package}: {args.dataset}, {number}: {len(faults) or 'no'} faults")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
