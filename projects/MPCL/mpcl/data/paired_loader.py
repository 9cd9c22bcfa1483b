"""Batches of source and target for each iteration, the same in every run, resumed or not."""

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import cv2
import torch
from detectron2.data import DatasetFromList
from torch.utils.data import DataLoader, Dataset

from .bad_files import BadFiles
from .decoding import BadFile
from .mapper import Record
from .sampler import Draw, Draws, rank_positions
from .worker_death import explain_death

logger = logging.getLogger(__name__)

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


def prepare_worker(worker: int) -> None:
    """Makes a DataLoader's worker single-threaded, and leaves its end to the trainer."""
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
    pin_memory: bool = False  # for a GPU; in pinned memory its copies overlap the step
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
                pin_memory=self.pin_memory,
                worker_init_fn=prepare_worker,
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
