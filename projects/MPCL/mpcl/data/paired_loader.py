"""Batches of source and target for each iteration, the same in every run, resumed or not."""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, count
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList, MetadataCatalog, build_detection_test_loader
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from .bad_files import BadFiles
from .decoding import BadFile
from .files import sample
from .mapper import Record, SourceMapper, TargetMapper, TestMapper
from .rare_class import RareClassSampler
from .resizing import scale_factors, scales_in_words
from .sampler import Draw, Draws, RareClassDraws, SharedDraws, UniformDraws, rank_positions
from .sets.registration import load_records
from .statistics import ClassStatistics, class_statistics
from .worker_death import explain_death

logger = logging.getLogger(__name__)

_SOURCE_STREAM, _TARGET_STREAM = 0, 1
_TRIES = 100  # draws for one place in a batch, when files are skipped
_SKIPPED = "bad_files"  # of a record: file -> reason of the draws that it stands in for

Batch = dict[str, list[Record]]


class DomainStream(Dataset[Record]):
    """The endless stream of augmented images of one domain; item p depends on the draw p alone.

    Args:
        records: what the draws' ``index`` counts. Kept serialised: workers share their memory.
        draws: which image comes at position p, and its seed.
        mapper: (record, draw) -> image, and label if the domain has one.
        skip_bad: a draw whose file cannot be used is replaced by another, which depends on the
            position and on the files alone; the result then names the file under ``bad_files``.
    Raises (on access):
        BadFile: the file of a draw cannot be used; with ``skip_bad``, nor those of 99 others.
    """

    def __init__(
        self,
        records: Sequence[Record],
        draws: Draws,
        mapper: Callable[[Record, Draw], Record],
        skip_bad: bool = False,
    ) -> None:
        self.records = DatasetFromList(list(records), copy=False)
        self.draws, self.mapper, self.skip_bad = draws, mapper, skip_bad

    def __getitem__(self, position: int) -> Record:
        skipped: dict[str, str] = {}
        for attempt in range(_TRIES):
            draw = self.draws.draw(position, attempt)
            try:
                record = self.mapper(self.records[draw.index], draw)
            except BadFile as error:
                if not self.skip_bad or attempt == _TRIES - 1:
                    raise
                skipped[error.file] = error.reason
            else:
                break
        return {**record, _SKIPPED: skipped} if skipped else record


class _Together(Dataset["Record | BadFile"]):
    """The same position of several streams, so that one set of workers serves all domains.

    A bad file is returned, not raised: PyTorch would wrap it in the worker's traceback.
    """

    def __init__(self, streams: Mapping[str, DomainStream]) -> None:
        self.streams = dict(streams)

    def __getitem__(self, position: int) -> Record | BadFile:
        try:
            return {domain: stream[position] for domain, stream in self.streams.items()}
        except BadFile as error:
            return error


def _by_domain(items: list[Record | BadFile]) -> Batch | BadFile:
    if fault := next((item for item in items if isinstance(item, BadFile)), None):
        return fault
    return {domain: [item[domain] for item in items] for domain in items[0]}


def _prepare_worker(worker: int) -> None:
    cv2.setNumThreads(0)  # the workers are the parallelism
    # Terminals and schedulers signal every process of a job. The trainer needs its workers until it
    # has ended its iteration, or evaluation; then they end, and also where the trainer is gone.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@dataclass
class PairedLoader:
    """Endless iterable of ``{"source": [record, ...], "target": [record, ...]}``, one an iteration.

    Iterating starts at iteration 0, or where :meth:`seek` says. The DataLoader and its workers come
    to life with the first batch and live as long as the iterator; they draw nothing from the global
    generators. What a batch holds does not depend on the number of workers, and the batches of all
    ranks together are the batch of a single process.

    Attributes:
        bad_files: what was skipped in the batches that were handed out so far.
    Raises: ValueError: ``batch_size`` is not a positive multiple of ``world_size``.
    """

    streams: Mapping[str, DomainStream]  # of each domain; without a target set "source" alone
    batch_size: int  # images of each domain in an iteration, over all ranks
    num_workers: int = 0  # of this rank; 0 loads in the calling process
    rank: int = 0
    world_size: int = 1
    max_bad_files: int = 0  # different files that are skipped before iterating raises ValueError

    def __post_init__(self) -> None:
        self.bad_files = BadFiles(self.max_bad_files)
        self._positions(0)  # a bad size fails here, not at first use
        self._start = 0

    def seek(self, iteration: int) -> None:
        """Makes iterators whose first batch is still to come start at ``iteration``."""
        self._start = iteration

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(
            DataLoader(
                _Together(self.streams),
                batch_sampler=(list(self._positions(i)) for i in count(self._start)),
                num_workers=self.num_workers,
                collate_fn=_by_domain,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=_prepare_worker,
                generator=torch.Generator(),  # else it would draw from the global one
            )
        )
        try:
            while True:
                batch = self._next(batches)
                self._count_bad_files(batch)
                yield batch
        finally:
            del batches  # a traceback would keep the workers alive for many seconds

    @staticmethod
    def _next(batches: Iterator[Batch | BadFile]) -> Batch:
        try:
            batch = next(batches)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            codes = [worker.exitcode for worker in batches._workers]
            raise RuntimeError(explain_death(codes)) from error
        finally:
            del batches
        if isinstance(batch, BadFile):
            raise batch
        return batch

    def _count_bad_files(self, batch: Batch) -> None:
        for record in (record for records in batch.values() for record in records):
            if skipped := record.pop(_SKIPPED, None):
                for file in self.bad_files.add(skipped):
                    logger.warning(f"Skipped: {file} {skipped[file]}")

    def _positions(self, iteration: int) -> range:
        return rank_positions(iteration, self.batch_size, self.rank, self.world_size)


def _named_records(names: Sequence[str]) -> list[list[Record]]:
    """Records of each set; each names its set, whose metadata decide how its files are read."""
    return [[{**record, "dataset": name} for record in load_records(name)] for name in names]


def _class_statistics(cfg: CfgNode, names: Sequence[str]) -> list[ClassStatistics]:
    """Counts the classes on the first rank; the others wait and then read what it has kept."""
    if not comm.is_main_process():
        comm.synchronize()
    skip = cfg.DATALOADER.ON_BAD_FILE == "skip"
    statistics = [class_statistics(name, cfg.DATALOADER.NUM_WORKERS, skip) for name in names]
    if comm.is_main_process():
        comm.synchronize()
    _check_classes(names, statistics)
    return statistics


def _check_classes(names: Sequence[str], statistics: Sequence[ClassStatistics]) -> None:
    """Refuses sources in which a class has no pixel that is not declared to be absent."""
    pixels = sum(s.counts.sum(axis=0) for s in statistics)
    metadata = MetadataCatalog.get(names[0])
    absent = {name for one in names for name in MetadataCatalog.get(one).get("absent", ())}
    empty = [c for c, count in zip(metadata.stuff_classes, pixels) if not count]
    missing = [name for name in empty if name not in absent]
    if missing or len(pixels) - len(empty) < 2:
        raise ValueError(
            f"DATASETS.TRAIN: no label of {', '.join(names)} has a pixel of "
            f"{', '.join(missing or empty) or 'a second class'}; tools/check_data.py tells which "
            "ids the files hold. If a class is to be absent, its data description says so: absent"
        )


def _draws(
    cfg: CfgNode,
    names: Sequence[str],
    sizes: Sequence[int],
    stream: int,
    statistics: Sequence[ClassStatistics] = (),
) -> Draws:
    """Of the sets of one domain: as one set, or in the shares of DATASETS.SHARES.

    Args:
        sizes: number of images of each set.
        statistics: of each set, where rare classes are to be drawn more often.
    """
    common, rare_class = {"seed": cfg.SEED, "stream": stream}, cfg.DATALOADER.RARE_CLASS

    def of(sets: slice) -> Draws:
        if not statistics:
            return UniformDraws(sum(sizes[sets]), **common)
        counted = [(s.counts, s.sizes) for s in statistics[sets]]
        counts, shapes = (np.concatenate(column) for column in zip(*counted))
        settings = (rare_class.TEMPERATURE, rare_class.MIN_IMAGE_FRACTION)
        return RareClassDraws(RareClassSampler(counts, shapes, *settings), **common)

    shares = {name: share for name, share in cfg.DATASETS.SHARES if name in names}
    if not shares:
        return of(slice(None))
    return SharedDraws(
        parts=[of(slice(number, number + 1)) for number in range(len(names))],
        sizes=sizes,
        shares=[shares[name] / sum(shares.values()) for name in names],
        **common,
    )


def _shares(draws: Draws, sizes: Sequence[int]) -> Sequence[float]:
    """How often each set is drawn, in the mean; they sum to 1."""
    if isinstance(draws, SharedDraws):
        return draws.shares
    if isinstance(draws, RareClassDraws):
        starts = np.cumsum([0, *sizes[:-1]])
        return np.add.reduceat(draws.sampler.image_probabilities, starts)
    return [size / sum(sizes) for size in sizes]


def _stream(
    cfg: CfgNode,
    names: Sequence[str],
    records: Sequence[Sequence[Record]],
    number: int,
    mapper: Callable[[Record, Draw], Record],
    box: Sequence[int],
    statistics: Sequence[ClassStatistics] = (),
) -> DomainStream:
    """The stream of the sets of one domain; a line of the log says of each what it brings."""
    sizes = [len(part) for part in records]
    draws = _draws(cfg, names, sizes, number, statistics)
    for i, (name, share) in enumerate(zip(names, _shares(draws, sizes))):
        words = f"{name}: {sizes[i]} images, {share:.1%} of the draws"
        if factors := scale_factors(sample(records[i], 100), tuple(box)):
            words += f"; {scales_in_words('scaled by', factors)}"
        if statistics:
            classes = zip(MetadataCatalog.get(name).stuff_classes, statistics[i].counts.sum(axis=0))
            lacking = ", ".join(c for c, n in classes if not n)
            words += f"; no pixel of {lacking}" if lacking else "; pixels of every class"
        logger.info(words)
    skip_bad = cfg.DATALOADER.ON_BAD_FILE == "skip"
    return DomainStream(list(chain(*records)), draws, mapper, skip_bad)


def build_paired_loader(cfg: CfgNode) -> PairedLoader:
    """The training loader that a configuration describes. All ranks must call it.

    ``SEED`` alone decides on all that is random. Without self-training, target sets are left alone.

    Raises: ValueError: the batch cannot be split over the ranks, or no label of the source has a
        pixel of a class. :func:`mpcl.config.preflight.preflight` says what else is wrong with sets.
    """
    names = list(cfg.DATASETS.TRAIN)
    records = _named_records(names)
    statistics = _class_statistics(cfg, names) if cfg.DATALOADER.RARE_CLASS.ENABLED else []
    source, box = SourceMapper.from_config(cfg), cfg.INPUT.SOURCE_SIZE
    streams = {"source": _stream(cfg, names, records, _SOURCE_STREAM, source, box, statistics)}
    if cfg.SELF_TRAINING.ENABLED:
        names = list(cfg.DATASETS.TRAIN_TARGET)
        records = _named_records(names)
        target, box = TargetMapper.from_config(cfg), cfg.INPUT.TARGET_SIZE
        streams["target"] = _stream(cfg, names, records, _TARGET_STREAM, target, box)
    loader = PairedLoader(
        streams,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        max_bad_files=cfg.DATALOADER.MAX_BAD_FILES,
    )
    for known in statistics:
        if known.bad:
            loader.bad_files.add(known.bad, skipped=0)
    return loader


def build_test_loader(cfg: CfgNode, dataset_name: str) -> DataLoader[Any]:
    """Detectron2's test loader, with images of the size that the target is trained at."""
    mapper = TestMapper.from_config(cfg, dataset_name)
    loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
    loader.worker_init_fn = _prepare_worker
    return loader
