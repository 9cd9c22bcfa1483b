"""From images to predictions with a trained network, as a library: :class:`Predictor`.

Legend: C classes, (H, W) an image's own size.
"""

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from PIL import Image
from torch import Tensor, nn

from ..checkpoint.weight_files import read
from ..config import get_cfg_from
from ..data.decoding import check_mode, read_image, to_bgr
from ..data.labels import IGNORE_LABEL
from ..data.mapper import TestMapper
from ..data.sets.custom import distinct_colors
from ..data.sets.driving_classes import CITYSCAPES_CLASSES, CITYSCAPES_COLORS
from .loading import load_networks, load_run

AnyImage = np.ndarray | Image.Image | str | os.PathLike[str]
SLIM_CONFIG, SLIM_CLASSES, SLIM_ROLE = "config", "classes", "role"
"""What a slim file holds beside its "model"."""


class Loaded(NamedTuple):
    """A network in evaluation mode, and what belongs to it."""

    cfg: CfgNode
    network: nn.Module
    metadata: Metadata
    role: str  # "teacher" or "student"


class Labels(NamedTuple):
    """The prediction of an image."""

    ids: np.ndarray  # (H, W) uint8 train ids
    confidence: np.ndarray | None  # (H, W) float32 probability of that class


class Predictor:
    """A trained network for images of any size, one or many at once.

    A drop-in for ``detectron2.engine.DefaultPredictor``: called with an image, it returns
    ``{"sem_seg": (C, H, W) logits}`` on the model's device, at the image's own size. Differs from
    it in: **arrays are RGB**, unless ``channel_order="BGR"`` is asked for (DefaultPredictor always
    takes BGR, as ``cv2.imread`` gives); files and PIL images are taken as well, and turned upright
    by their EXIF tag; a list is predicted in batches, images of one size together, and gives a
    list. Images are resized as in the evaluation (INPUT.TARGET_SIZE), and predicted whole or by
    sliding windows as the config says.

        predictor = mpcl.Predictor("output/gta5_to_cityscapes/mic_gauss")
        labels = predictor.labels("street.jpg").ids           # (H, W) train ids
        logits = predictor([image_1, image_2])[1]["sem_seg"]  # (C, H, W)

    Attributes:
        cfg, model, metadata: as of DefaultPredictor; ``metadata`` has ``stuff_classes`` and
            ``stuff_colors``.
        role: ``"teacher"`` or ``"student"``: which network predicts.
    """

    def __init__(
        self,
        source: CfgNode | str | os.PathLike[str],
        weights: str | os.PathLike[str] = "",
        *,
        opts: Sequence[Any] = (),
        student: bool = False,
        channel_order: str = "RGB",
        batch_size: int = 4,
    ) -> None:
        """
        Args:
            source, weights, opts, student: see :func:`load_network`.
            channel_order: of arrays, ``"RGB"`` or ``"BGR"``.
            batch_size: images in one forward, at most.

        Raises:
            ValueError: ``channel_order`` or ``batch_size`` is none of these, and as
                :func:`load_network`.
        """
        if channel_order not in ("RGB", "BGR"):
            raise ValueError(f"channel_order is {channel_order!r}; expected RGB or BGR")
        if batch_size < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}")
        self.cfg, self.model, self.metadata, self.role = load_network(
            source, weights, opts=opts, student=student
        )
        self.channel_order, self.batch_size = channel_order, batch_size
        self._mapper = TestMapper.from_config(self.cfg)
        # What turns scores into probabilities: (10) compares similarities at this temperature.
        by_prototypes = self.cfg.TEST.OUTPUT == "prototypes"
        self._temperature = self.cfg.PROTOTYPES.TEMPERATURE if by_prototypes else 1.0

    def __call__(self, images: AnyImage | Sequence[AnyImage]) -> Any:
        """Logits at the images' own sizes.

        Args:
            images: one image or a list or tuple of them: an array (H, W, 3) uint8, a PIL image, or
                the path of a file.

        Returns: ``{"sem_seg": (C, H, W) float32}``; a list of them for a list.
        Raises: ValueError: an array is of another shape or type, or a file cannot be read.
        """
        if not isinstance(images, list | tuple):
            return {"sem_seg": next(self._logits([images]))}
        return [{"sem_seg": logits} for logits in self._logits(images)]

    def labels(self, images: AnyImage | Sequence[AnyImage], *, confidence: bool = False) -> Any:
        """The most probable classes at the images' own sizes.

        Args:
            images: as of :meth:`__call__`.
            confidence: also give their probabilities (of prototypes: softmax of the similarities
                at PROTOTYPES.TEMPERATURE).

        Returns: :class:`Labels`, on the CPU; a list of them for a list.
        """
        if not isinstance(images, list | tuple):
            return self.labels([images], confidence=confidence)[0]
        return [self._labels(logits, confidence) for logits in self._logits(images)]

    def _labels(self, logits: Tensor, confidence: bool) -> Labels:
        if not confidence:
            return Labels(_to_array(logits.argmax(0)), None)
        largest, ids = (logits / self._temperature).softmax(0).max(0)
        return Labels(_to_array(ids), largest.cpu().numpy())

    def _logits(self, images: Sequence[AnyImage]) -> Iterator[Tensor]:
        for start in range(0, len(images), self.batch_size):
            batch = images[start : start + self.batch_size]
            records = [self._mapper.of_pixels(self._to_bgr(image)) for image in batch]
            with torch.no_grad():
                results = self.model(records)
            yield from (result["sem_seg"] for result in results)

    def _to_bgr(self, image: AnyImage) -> np.ndarray:
        if isinstance(image, str | os.PathLike):
            return read_image(os.fspath(image))
        if isinstance(image, Image.Image):
            check_mode(getattr(image, "filename", "") or "the image", image)
            return to_bgr(image)
        if not isinstance(image, np.ndarray):
            raise ValueError(f"image is a {type(image).__name__}; expected an array, PIL or a path")
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError(
                f"image is an array {image.shape} of {image.dtype}; expected (H, W, 3) of uint8"
            )
        return np.ascontiguousarray(image if self.channel_order == "BGR" else image[..., ::-1])


def load_network(
    source: CfgNode | str | os.PathLike[str],
    weights: str | os.PathLike[str] = "",
    *,
    opts: Sequence[Any] = (),
    student: bool = False,
) -> Loaded:
    """The network that predicts: the teacher where the checkpoint holds one, else the student.

    Prototypes belong to the student: with TEST.OUTPUT prototypes it is the one that predicts.

    Args:
        source: a config; a config file; the output folder of a run; or a weight file, either slim
            (tools/export.py), with its config inside, or beside a run's config.yaml.
        weights: a checkpoint instead of the config's MODEL.WEIGHTS, or of a run's newest.
        opts: KEY VALUE pairs over the config. Without MODEL.DEVICE among them, a config that was
            read from a file runs on the GPU where there is one, wherever it was written.
        student: of a checkpoint with both, use the student.

    Raises:
        FileNotFoundError: the source or the weights do not exist.
        ValueError: there is no config, the weights lack layers of the model, or prototypes are to
            predict that were never started.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    own = [*(["MODEL.WEIGHTS", str(weights)] if weights else []), *opts]
    file_opts = ["MODEL.DEVICE", device, *own]
    metadata, saved_role = None, "student"  # the role of a checkpoint's "model"
    if isinstance(source, CfgNode):
        cfg = source.clone()
        cfg.defrost()
        cfg.merge_from_list(own)
        networks = load_networks(cfg)
    elif (path := Path(source)).is_dir():
        if weights:
            cfg = get_cfg_from(str(path / "config.yaml"), file_opts)
            networks = load_networks(cfg)
        else:
            cfg, *networks = load_run(path, file_opts)
    elif path.suffix in (".yaml", ".yml"):
        cfg = get_cfg_from(str(path), file_opts)
        networks = load_networks(cfg)
    else:
        cfg, metadata, saved_role = _config_of_weights(path, file_opts)
        networks = load_networks(cfg)
    student_network, teacher = networks
    by_prototypes = cfg.TEST.OUTPUT == "prototypes"
    if by_prototypes and not student_network.prototype_head.prototypes.started.any():
        raise ValueError(
            "TEST.OUTPUT prototypes: the checkpoint was saved before its prototypes started "
            f"(PROTOTYPES.INIT.ITER {cfg.PROTOTYPES.INIT.ITER}), or they were left out of it"
        )
    if student or teacher is None or by_prototypes:
        chosen, role = student_network.eval(), saved_role
    else:
        chosen, role = teacher.eval().model, "teacher"
    return Loaded(cfg, chosen.requires_grad_(False), metadata or _metadata(cfg), role)


def _config_of_weights(path: Path, opts: Sequence[Any]) -> tuple[CfgNode, Metadata | None, str]:
    """The config inside a slim file, its classes and its network's role; or what is beside a run's
    checkpoint."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no run, config or weight file at {path}")
    opts = ["MODEL.WEIGHTS", str(path), *opts]
    content = read(str(path))
    if SLIM_CONFIG in content:
        classes = content[SLIM_CLASSES]
        metadata = _new_metadata(classes["names"], classes["colors"])
        return _read_config(content[SLIM_CONFIG], opts), metadata, content[SLIM_ROLE]
    if (beside := path.with_name("config.yaml")).is_file():
        return get_cfg_from(str(beside), opts), None, "student"
    raise ValueError(
        f"{path} comes without its config: name a config file and these weights, or a run's "
        "folder, or write a slim file with tools/export.py"
    )


def _read_config(text: str, opts: Sequence[Any]) -> CfgNode:
    """A config out of a weight file, which may come from anywhere: plain values, no other file."""
    try:
        settings = yaml.safe_load(text)  # detectron2's own reader would fall back to an unsafe one
    except yaml.YAMLError as error:
        raise ValueError(f"the weight file's config is not plain YAML: {error}") from error
    if not isinstance(settings, dict) or "_BASE_" in settings:
        raise ValueError("the weight file's config is none of tools/export.py")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return get_cfg_from(str(file), opts)


def _metadata(cfg: CfgNode) -> Metadata:
    """Names and colours of the model's classes: of a data set of the config, if one has as many."""
    number = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    for name in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        if name in MetadataCatalog and len(MetadataCatalog.get(name).get("stuff_classes", ())):
            known = MetadataCatalog.get(name)
            if len(known.stuff_classes) == number and known.get("stuff_colors"):
                return known
    if number == len(CITYSCAPES_CLASSES):
        return _new_metadata(CITYSCAPES_CLASSES, CITYSCAPES_COLORS)
    return _new_metadata([f"class {i}" for i in range(number)], distinct_colors(number))


def _new_metadata(classes: Sequence[str], colors: Sequence[Sequence[int]]) -> Metadata:
    return Metadata(
        stuff_classes=list(classes),
        stuff_colors=[tuple(color) for color in colors],
        ignore_label=IGNORE_LABEL,
    )


def _to_array(ids: Tensor) -> np.ndarray:
    return ids.to(torch.uint8).cpu().numpy()
