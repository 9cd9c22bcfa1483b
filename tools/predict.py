#!/usr/bin/env python
"""Predicts images, folders of them, videos or a camera, and writes what is asked for.

  python tools/predict.py --run output/gta5_to_cityscapes/mic_gauss --input photos --output out
  python tools/predict.py --config-file projects/MPCL/configs/mic.yaml --weights weights/mic.pth \\
      --input 'drive/**/*.png' street.jpg --output out [KEY VALUE ...]
  python tools/predict.py --weights slim.pth --input drive.mp4 --output out   # of tools/export.py
  python tools/predict.py --weights slim.pth --input 0 --output out           # camera 0, to Ctrl-C

Written are, each in a folder of OUTPUT, overlay (input and prediction side by side; of videos an
MP4), train_ids (8-bit PNGs), label_ids (ids of Cityscapes' label files, for its 19 classes) and
confidence (8-bit PNGs, 255 = 1). Images are resized and predicted (whole, or by sliding windows) as
in the evaluation of the config, and have their own size again in the end; EXIF orientation is
applied. Existing files are not replaced unless --existing says so. Exit status 1: some images could
not be read.
"""

import argparse
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from mpcl.data.decoding import BadFile, read_image
from mpcl.predict.arguments import add_network_arguments, network_arguments
from mpcl.predict.prediction_files import (
    KINDS,
    ImageFile,
    OverlayVideo,
    PredictionWriter,
    Stream,
    default_kinds,
    find_images,
    is_stream,
    stream_name,
)
from mpcl.predict.predictor import Predictor
from mpcl.utils.cli import add_debug_option, command_line
from mpcl.utils.host_memory import keep_freed_memory


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
        choices=list(KINDS),
        help="what to write (default: overlay train_ids, and label_ids for Cityscapes' classes)",
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
        "--threads", type=int, default=4, help="that read and write files (default: 4)"
    )
    parser.add_argument("--opacity", type=float, default=0.6, help="of overlays (default: 0.6)")
    parser.add_argument("--max-frames", type=int, help="of each video or camera")
    add_network_arguments(parser)
    add_debug_option(parser)
    return parser.parse_args(argv)


def read_ahead(
    pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any], depth: int
) -> Iterator[Any]:
    """``function(item)`` of each, in order; up to ``depth`` are under way."""
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def batches(items: Iterable[Any], size: Callable[[Any], Any], limit: int) -> Iterator[list[Any]]:
    """Runs of items of one size, at most ``limit`` long."""
    for _, run in groupby(items, key=size):
        while batch := list(islice(run, limit)):
            yield batch


def predict_images(
    predictor: Predictor, writer: PredictionWriter, images: list[ImageFile], threads: int
) -> list[str]:
    """Returns what is wrong with the images that could not be read."""
    faults: list[str] = []

    def read(image: ImageFile) -> tuple[ImageFile, np.ndarray | None]:
        try:
            return image, read_image(image.path)
        except BadFile as error:
            faults.append(str(error))
            return image, None

    with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers:
        written: deque[Future] = deque()
        progress = tqdm(total=len(images), unit="image", desc=predictor.role)
        depth = 2 * predictor.batch_size
        pairs = read_ahead(readers, read, images, depth)
        by_size = batches(pairs, lambda pair: np.shape(pair[1]), predictor.batch_size)
        for batch in by_size:
            if batch[0][1] is not None:
                pixels = [image for _, image in batch]
                labels = predictor.labels(pixels, confidence="confidence" in writer.kinds)
                for (file, image), label in zip(batch, labels):
                    written.append(writers.submit(writer.write, file.name, image, *label))
            progress.update(len(batch))
            while len(written) > depth:
                written.popleft().result()
        while written:
            written.popleft().result()
        progress.close()
    return faults


def predict_stream(predictor: Predictor, writer: PredictionWriter, stream: Stream) -> int:
    """Returns the number of frames; an interrupt ends a camera, and keeps what is there."""
    video = OverlayVideo(writer.video_path(stream.name), stream.fps)
    progress = tqdm(total=stream.num_frames, unit="image", desc=f"{predictor.role} {stream.name}")
    count = 0
    # A camera is shown as it goes; the frames of a file may wait for one another.
    limit = 1 if stream.is_camera else predictor.batch_size
    try:
        for batch in batches(stream, np.shape, limit):
            labels = predictor.labels(batch, confidence="confidence" in writer.kinds)
            for image, label in zip(batch, labels):
                writer.write_frame(video, f"{stream.name}/{count:06d}", image, *label)
                count += 1
            progress.update(len(batch))
    except KeyboardInterrupt:
        if not stream.is_camera:
            raise
    finally:
        video.close()
        progress.close()
    return count


def plan(
    inputs: Sequence[str], writer: PredictionWriter, existing: str
) -> tuple[list[ImageFile], list[str], int]:
    """Images and streams to predict, and the number of those that are skipped.

    Raises:
        ValueError: outputs exist, and are to be kept.
    """
    streams = [text for text in inputs if is_stream(text)]
    names = [stream_name(text) for text in streams]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"several videos are called {', '.join(sorted(twice))}: predict one a call"
        )
    files = [text for text in inputs if not is_stream(text)]
    images = find_images(files) if files else []
    there = {image.name: writer.existing(image.name) for image in images}
    streams_there = {text: writer.existing_of_stream(stream_name(text)) for text in streams}
    found = [path for paths in (*there.values(), *streams_there.values()) for path in paths]
    if found and existing == "refuse":
        raise ValueError(
            f"{len(found)} outputs exist already, for instance {found[0]}; name another folder, or "
            "add --existing skip or --existing overwrite"
        )
    if existing == "skip":
        total = len(images) + len(streams)
        images = [image for image in images if len(there[image.name]) < len(writer.kinds)]
        streams = [text for text in streams if len(streams_there[text]) < len(writer.kinds)]
        return images, streams, total - len(images) - len(streams)
    return images, streams, 0


@command_line
def main(argv: Sequence[str] | None = None) -> int:
    args = parse_args(argv)
    if args.threads < 1:
        raise ValueError(f"--threads is {args.threads}; expected 1 or more")
    by_prototypes = ["TEST.OUTPUT", "prototypes"] if args.prototype_output else []
    predictor = Predictor(
        **network_arguments(args, by_prototypes), channel_order="BGR", batch_size=args.batch_size
    )
    kinds = args.write or default_kinds(predictor.metadata)
    if predictor.model.device.type == "cpu":
        keep_freed_memory()
    writer = PredictionWriter(args.output, kinds, predictor.metadata, opacity=args.opacity)
    images, streams, skipped = plan(args.input, writer, args.existing)
    start = time.perf_counter()
    faults = predict_images(predictor, writer, images, args.threads) if images else []
    count = len(images) - len(faults)
    for text in streams:
        count += predict_stream(predictor, writer, Stream(text, args.max_frames))
    seconds = time.perf_counter() - start
    print("\n".join(f"FAULT {fault}" for fault in faults), end="\n" * bool(faults))
    rate = f"{count / seconds:.2f} images/s" if count else "nothing to do"
    print(f"{predictor.role}: {count} images predicted ({rate}), {skipped} inputs skipped")
    for kind in writer.kinds:
        videos = f", {len(streams)} videos" if kind == "overlay" and streams else ""
        print(f"  {kind:<10} {writer.written[kind]} files{videos} in {args.output / kind}")
    return int(bool(faults))


if __name__ == "__main__":
    raise SystemExit(main())
