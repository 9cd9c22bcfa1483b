#!/usr/bin/env python
"""Predicts images, folders of them, videos or a camera, and writes what is asked for.

  python tools/predict.py --run output/gta5_to_cityscapes/mic_gauss --input photos --output out
  python tools/predict.py --config-file projects/MPCL/configs/mic.yaml --weights weights/mic.pth \\
      --input 'drive/**/*.png' street.jpg --output out [KEY VALUE ...]
  python tools/predict.py --weights slim.pth --input drive.mp4 --output out   # of tools/export.py
  python tools/predict.py --weights slim.pth --input 0 --output out           # camera 0, to Ctrl-C

Written are, each in a folder of OUTPUT, overlay (input and prediction side by side; of videos an
MP4), train_ids (8-bit PNGs), label_ids (with the ids of your label files) and confidence (8-bit
PNGs, 255 = 1); of GeoTIFFs georeferenced TIFFs. Images are resized and predicted (whole, or by
sliding windows; large ones by tiles) as in the evaluation of the config, and have their own size
again in the end; EXIF orientation is applied. Existing files are not replaced unless --existing
says so. Exit status 1: an image could not be read, or a video to its end.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from command_line import add_network_arguments, command_line, make_parser, network_arguments


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument(
        "--input",
        nargs="+",
        required=True,
        help="images, folders, quoted globs, videos, or the number of a camera",
    )
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument(
        "--write",
        nargs="+",
        metavar="KIND",
        help="default: overlay train_ids, and label_ids for Cityscapes' classes",
    )
    parser.add_argument(
        "--existing",
        choices=("refuse", "skip", "overwrite"),
        default="refuse",
        help="what becomes of outputs that are there already (default: refuse to start)",
    )
    parser.add_argument(
        "--prototype-output",
        action="store_true",
        help="classify by the nearest prototype (Eq. 10) instead of the classifier; the student",
    )
    parser.add_argument("--batch-size", type=int, default=4, help="images a forward (default: 4)")
    parser.add_argument(
        "--tile",
        type=int,
        default=4096,
        help="pixels to a side of the tiles that larger images are predicted by (default: 4096)",
    )
    parser.add_argument(
        "--threads", type=int, default=4, help="that read and write files (default: 4)"
    )
    parser.add_argument("--opacity", type=float, default=0.6, help="of overlays (default: 0.6)")
    parser.add_argument("--max-frames", type=int, help="of each video or camera")
    add_network_arguments(parser)
    args = parser.parse_args(argv)
    if args.threads < 1:
        parser.error(f"--threads is {args.threads}; expected 1 or more")
    by_prototypes = ["TEST.OUTPUT", "prototypes"] if args.prototype_output else []
    args.network = network_arguments(parser, args, by_prototypes)
    return args


@command_line(parse_args)
def main(args: argparse.Namespace) -> int:
    from mpcl.predict.inputs import Stream
    from mpcl.predict.pipeline import plan, predict_images, predict_stream
    from mpcl.predict.prediction_files import PredictionWriter, default_kinds
    from mpcl.predict.predictor import Predictor
    from mpcl.utils.host_memory import keep_freed_memory

    predictor = Predictor(
        **args.network, channel_order="BGR", batch_size=args.batch_size, tile=args.tile
    )
    kinds = args.write or default_kinds(predictor.metadata)
    if predictor.model.device.type == "cpu":
        keep_freed_memory()
    looks = {"opacity": args.opacity, "keep": args.existing == "skip"}
    writer = PredictionWriter(args.output, kinds, predictor.metadata, **looks)
    images, streams, skipped = plan(args.input, writer, args.existing)
    if images or streams:
        writer.write_legend()
    start = time.perf_counter()
    faults = predict_images(predictor, writer, images, args.threads) if images else []
    count = len(images) - len(faults)
    for text in streams:
        try:
            frames, broken = predict_stream(predictor, writer, Stream(text, args.max_frames))
        except ValueError as error:  # such as a video that cannot be opened
            frames, broken = 0, [str(error)]
        count += frames
        faults += broken
    seconds = time.perf_counter() - start
    for fault in faults:
        print(f"FAULT {fault}")
    rate = f"{count / seconds:.2f} images/s" if count else "nothing to do"
    rest = f", {len(faults)} could not be read" if faults else ""
    rest += f", {skipped} were there already" if skipped else ""
    print(f"{predictor.role}: {count} images predicted ({rate}){rest}")
    for kind in writer.kinds:
        videos = f", {len(streams)} videos" if kind == "overlay" and streams else ""
        print(f"  {kind:<10} {writer.written[kind]} files{videos} in {args.output / kind}")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
