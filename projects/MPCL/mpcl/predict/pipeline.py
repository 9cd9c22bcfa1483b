"""Images and streams through a predictor into files; reading, predicting and writing overlap, but
for large images, which come one at a time."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.decoding import BadFile, read_image
from ..utils.messages import shown
from .inputs import ImageFile, Stream, find_images, is_stream, stream_name
from .prediction_files import KINDS, PredictionWriter, StreamOutputs
from .predictor import Predictor


def overlapped(
    pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Iterable[Any], depth: int
) -> Iterator[Any]:
    """Yields ``function(item)`` of each item, in order; up to ``depth`` are under way."""
    waiting: deque[Future] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def batches(items: Iterable[Any], size: Callable[[Any], Any], limit: int) -> Iterator[list[Any]]:
    """Yields runs of items of one size, at most ``limit`` long."""
    for _, run in groupby(items, key=size):
        while batch := list(islice(run, limit)):
            yield batch


def predict_images(
    predictor: Predictor, writer: PredictionWriter, images: list[ImageFile], threads: int
) -> list[str]:
    """Predicts images and writes what the writer is for.

    Returns: what is wrong with each image that could not be predicted.
    """
    # What has no size cannot be read: the batches say so of it.
    large = [i for i in images if any(i.size) and predictor.is_large(i.size[::-1])]
    others = [image for image in images if image not in large]
    with tqdm(total=len(images), unit="image", desc=predictor.role, disable=None) as progress:
        faults = _predict_batches(predictor, writer, others, threads, progress)
        for image in large:
            faults += _predict_large(predictor, writer, image)
            progress.update()
    return faults


def _predict_large(
    predictor: Predictor, writer: PredictionWriter, image: ImageFile
) -> Iterator[str]:
    """Of what is large nothing is read ahead: memory holds one image. Yields its fault, if any."""
    try:
        pixels = read_image(image.path)
        labels = predictor.labels(pixels, confidence="confidence" in writer.kinds)
    except BadFile as error:
        yield str(error)
    except ValueError as error:
        yield f"{shown(image.path)}: {error}"
    else:
        writer.write(image, pixels, labels)


def _predict_batches(
    predictor: Predictor,
    writer: PredictionWriter,
    images: list[ImageFile],
    threads: int,
    progress: tqdm,
) -> list[str]:
    faults: list[str] = []

    def read(file: ImageFile) -> tuple[ImageFile, np.ndarray | None]:
        try:
            return file, read_image(file.path)
        except BadFile as error:
            faults.append(str(error))
            return file, None

    def predicted(read_files: Iterable[tuple]) -> Iterator[tuple]:
        for batch in batches(read_files, lambda pair: np.shape(pair[1]), predictor.batch_size):
            if batch[0][1] is not None:
                pixels = [image for _, image in batch]
                labels = predictor.labels(pixels, confidence="confidence" in writer.kinds)
                yield from ((file, image, label) for (file, image), label in zip(batch, labels))
            progress.update(len(batch))

    depth = 2 * predictor.batch_size
    with ThreadPoolExecutor(threads) as readers, ThreadPoolExecutor(threads) as writers:
        results = predicted(overlapped(readers, read, images, depth))
        for _ in overlapped(writers, lambda result: writer.write(*result), results, depth):
            pass
    return faults


def predict_stream(
    predictor: Predictor, writer: PredictionWriter, stream: Stream
) -> tuple[int, list[str]]:
    """Predicts the frames of a stream; an interrupt ends a camera, and keeps what is there.

    Returns: the number of frames, and what is wrong with the stream.
    """
    outputs = StreamOutputs(writer, stream)
    # A camera is shown as it goes; the frames of a file may wait for one another.
    limit = 1 if stream.is_camera else predictor.batch_size
    description = f"{predictor.role} {stream.name}"
    with tqdm(total=stream.num_frames, unit="image", desc=description, disable=None) as progress:
        try:
            for batch in batches(stream, np.shape, limit):
                labels = predictor.labels(batch, confidence="confidence" in writer.kinds)
                for image, label in zip(batch, labels):
                    outputs.add(image, label)
                progress.update(len(batch))
        except KeyboardInterrupt:
            if not stream.is_camera:
                raise
    outputs.finish()
    fault = stream.fault_of(outputs.count)
    return outputs.count, [fault] if fault else []


def plan(
    inputs: Sequence[str], writer: PredictionWriter, existing: str
) -> tuple[list[ImageFile], list[str], int]:
    """Finds the images and streams to predict, and counts those that are skipped.

    Raises: ValueError: outputs exist, and are to be kept; an image is an output itself; or the
        outputs of an image and of a video would lie in one folder.
    """
    streams = [text for text in inputs if is_stream(text)]
    names = [stream_name(text) for text in streams]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(
            f"several videos are called {', '.join(sorted(twice))}: predict one a call"
        )
    images = find_images([text for text in inputs if text not in streams])
    _refuse_outputs(images, writer, names)
    of_images = [writer.existing(image) for image in images]
    of_streams = [writer.existing_of_stream(name) for name in names]
    found = [path for paths in of_images + of_streams for path in paths]
    if found and existing == "refuse":
        raise ValueError(
            f"{len(found)} outputs exist already, for instance {found[0]}; name another folder, or "
            "add --existing skip or --existing overwrite"
        )
    if existing == "skip":
        total, kinds = len(images) + len(streams), len(writer.kinds)
        images = [image for image, there in zip(images, of_images) if len(there) < kinds]
        streams = [text for text, there in zip(streams, of_streams) if len(there) < kinds]
        return images, streams, total - len(images) - len(streams)
    return images, streams, 0


def _refuse_outputs(images: list[ImageFile], writer: PredictionWriter, streams: list[str]) -> None:
    outputs = [Path(writer.folder, kind).absolute() for kind in KINDS]
    for image in images:
        if any(folder in Path(image.path).absolute().parents for folder in outputs):
            raise ValueError(
                f"{image.path} is among the images to predict, and lies in the output folder: name "
                "one outside of the input folders"
            )
        if (folder := image.name.split("/")[0]) != image.name and folder in streams:
            raise ValueError(
                f"the outputs of {image.path} and of the video {folder} would lie in one folder: "
                "predict the video in a call of its own, with another --output"
            )
