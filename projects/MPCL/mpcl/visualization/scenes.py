"""What figures are made of: images of a data set, and what a network takes for them."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from torch import Tensor, nn

from ..data.decoding import read_image
from ..data.labels import read_label
from ..data.mapper import TestMapper
from ..data.sets.registration import load_records
from ..predict.loading import Networks
from ..predict.predictor import predict
from ..prototypes.embedding import normalize_embeddings
from ..structures.view import at_cell_centres


class Scene(NamedTuple):
    """An image of a data set.

    Attributes:
        file: its name.
        image: (H, W, 3) uint8 RGB at the file's own size.
        truth: (H, W) uint8 class ids, 255 = ignored; None in image-only sets.
        record: what a network takes, at the size that it was trained at.
    """

    file: str
    image: np.ndarray
    truth: np.ndarray | None
    record: dict[str, Any]


def first_source_set(cfg: CfgNode) -> str:
    """Name of the labelled set that a network was trained on.

    Raises: ValueError: DATASETS.TRAIN is empty.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; expected the labelled set of the source")
    return str(cfg.DATASETS.TRAIN[0])


def first_test_set(cfg: CfgNode) -> str:
    """Name of the labelled set that figures show.

    Raises: ValueError: DATASETS.TEST is empty.
    """
    if not cfg.DATASETS.TEST:
        raise ValueError("DATASETS.TEST is empty; expected a labelled set to look at")
    return str(cfg.DATASETS.TEST[0])


def check_number(number: int) -> None:
    """Raises ValueError unless a number of images is positive."""
    if number < 1:
        raise ValueError(f"the number of images must be positive, got {number}")


def evenly_spaced(total: int, number: int) -> list[int]:
    """``number`` indices from the first to the last of ``total``; all of them if there are fewer.

    Raises: ValueError: ``number`` is not positive.
    """
    check_number(number)
    return sorted({round(i) for i in np.linspace(0, total - 1, min(number, total))})


def load_scenes(cfg: CfgNode, dataset: str, number: int) -> list[Scene]:
    """Evenly spaced images of a set.

    Raises: BadFile, FileNotFoundError, ValueError: an image or label cannot be read; the set is not
        there, unknown or empty.
    """
    if dataset not in DatasetCatalog:
        raise ValueError(f"{dataset} is no registered data set")
    records = load_records(dataset)
    label_map = MetadataCatalog.get(dataset).get("label_map")
    is_source = dataset in cfg.DATASETS.TRAIN
    mapper = TestMapper(size=tuple(cfg.INPUT.SOURCE_SIZE if is_source else cfg.INPUT.TARGET_SIZE))
    found = []
    for index in evenly_spaced(len(records), number):
        file, label = records[index]["file_name"], records[index].get("sem_seg_file_name")
        bgr = read_image(file)
        truth = None if label is None else read_label(label, label_map)
        found.append(Scene(file, bgr[..., ::-1].copy(), truth, mapper.of_pixels(bgr, file)))
    return found


def predicted_scenes(
    networks: Sequence[Networks], dataset: str, number: int
) -> Iterator[tuple[Scene, list[np.ndarray]]]:
    """Yields what :func:`load_scenes` finds, with the (H, W) uint8 class ids that each network
    predicts; it sees the images as in the evaluation of its own config."""
    for scene in load_scenes(networks[0].cfg, dataset, number):
        bgr = np.ascontiguousarray(scene.image[..., ::-1])
        mappers = [TestMapper.from_config(each.cfg) for each in networks]
        records = [mapper.of_pixels(bgr, scene.file) for mapper in mappers]
        yield scene, [predict(each.network, record) for each, record in zip(networks, records)]


@torch.no_grad()
def pixel_features(student: nn.Module, record: dict[str, Any]) -> Tensor:
    """(D, h, w) float32: the embeddings of :func:`embed`; of a network without prototypes the
    decode head's fused features, layer-normalised as embeddings are."""
    if student.prototype_head is not None:
        return embed(student, record)
    fused = student.sem_seg_head.fuse(student.encode(student.normalize([record])))
    return normalize_embeddings(fused, "layer")[0]


@torch.no_grad()
def embed(student: nn.Module, record: dict[str, Any]) -> Tensor:
    """(D, h, w) float32 embeddings of a whole image; of a multi-resolution student its context's.

    Raises: ValueError: the network has no prototypes.
    """
    if student.prototype_head is None:
        raise ValueError("the network has no prototypes: PROTOTYPES.TYPE is none")
    features = student.encode(student.normalize([record]))
    return student.prototype_head(features, student.sem_seg_head.fuse(features))[0]


def labels_on_grid(label: np.ndarray, size: Sequence[int], num_classes: int) -> Tensor:
    """(H, W) class ids -> (h, w) int64, as training takes them; ignored pixels become
    ``num_classes``."""
    small = at_cell_centres(torch.from_numpy(label)[None], size)[0].long()
    return torch.where(small < num_classes, small, num_classes)
