"""The loaders that a configuration describes."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.utils import comm
from torch.utils.data import DataLoader

from .decoding import BadFile
from .files import sample
from .mapper import Record, SourceMapper, TargetMapper, TestMapper
from .paired_loader import DomainStream, PairedLoader, prepare_worker
from .rare_class import RareClassSampler
from .resizing import scale_factors, scales_in_words
from .sampler import Draw, Draws, RareClassDraws, SharedDraws, UniformDraws
from .sets.registration import load_records
from .statistics import ClassStatistics, class_statistics

logger = logging.getLogger(__name__)

_SOURCE_STREAM, _TARGET_STREAM = 0, 1


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


def rare_class_sampler(cfg: CfgNode, statistics: Sequence[ClassStatistics]) -> RareClassSampler:
    """Of all sets as one, with DATALOADER.RARE_CLASS as it is set."""
    counts = np.concatenate([s.counts for s in statistics])
    sizes = np.concatenate([s.sizes for s in statistics])
    settings = cfg.DATALOADER.RARE_CLASS
    return RareClassSampler(counts, sizes, settings.TEMPERATURE, settings.MIN_IMAGE_FRACTION)


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
    common = {"seed": cfg.SEED, "stream": stream}

    def of(sets: slice) -> Draws:
        if not statistics:
            return UniformDraws(sum(sizes[sets]), **common)
        return RareClassDraws(rare_class_sampler(cfg, statistics[sets]), **common)

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
        pin_memory=torch.device(cfg.MODEL.DEVICE).type == "cuda",
        max_bad_files=cfg.DATALOADER.MAX_BAD_FILES,
    )
    for known in statistics:
        if known.bad:
            loader.bad_files.add(known.bad, skipped=0)
    return loader


@dataclass
class TestLoader:
    """Batches of a DataLoader; raises the BadFile that a worker gives in the place of a record,
    which PyTorch would wrap in the worker's traceback."""

    __test__ = False  # the name starts with Test, but it is none

    loader: DataLoader[Any]

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Record]]:
        for batch in self.loader:
            if fault := next((item for item in batch if isinstance(item, BadFile)), None):
                raise fault
            yield batch


def _record_or_fault(mapper: TestMapper, record: Record) -> Record | BadFile:
    try:
        return mapper(record)
    except BadFile as error:
        return error


def build_test_loader(cfg: CfgNode, dataset_name: str) -> TestLoader:
    """Detectron2's test loader, with images of the size that the target is trained at.

    Raises (when iterated): BadFile: an image or a label cannot be read.
    """
    mapper = partial(_record_or_fault, TestMapper.from_config(cfg, dataset_name))
    loader = build_detection_test_loader(cfg, dataset_name, mapper=mapper)
    loader.worker_init_fn = prepare_worker
    return TestLoader(loader)
