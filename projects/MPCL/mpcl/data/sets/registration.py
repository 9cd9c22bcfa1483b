"""Data sets in Detectron2's catalogs.

Labelled sets are called ``<name>_sem_seg_<split>``, image-only sets ``<name>_images_<split>``.

Importing this module registers them all and touches no file: folders are looked up below
``$DETECTRON2_DATASETS`` (default ``datasets``) when a set is first used. An image-only set knows an
image folder and nothing else, so training on target images cannot read their labels, whether such
files exist or not. ``datasets/README.md`` shows every folder.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import detectron2.data.datasets  # noqa: F401  (registers Cityscapes)
from detectron2.data import DatasetCatalog, MetadataCatalog

from ...utils.ignore_label import IGNORE_LABEL
from ..files import Record, image_records, labelled_records, list_files
from ..labels import Color, LabelMap
from .driving_classes import (
    CAMVID_CLASSES,
    CAMVID_COLORS,
    CAMVID_IDS,
    CITYSCAPES_CLASSES,
    CITYSCAPES_COLORS,
)

_ROOT_VARIABLE = "DETECTRON2_DATASETS"


def datasets_root() -> Path:
    """Folder of all data sets, as in Detectron2: ``$DETECTRON2_DATASETS``, else ``datasets``."""
    return Path(os.getenv(_ROOT_VARIABLE, "datasets")).expanduser()


def root_in_words() -> str:
    """The root as an absolute path and where it comes from, for messages."""
    value = os.getenv(_ROOT_VARIABLE)
    origin = f"is {value!r}" if value else "is not set"
    return f"{datasets_root().resolve()} ({_ROOT_VARIABLE} {origin})"


@dataclass(frozen=True)
class FolderTree:
    """Where the files of one set lie, relative to :func:`datasets_root`."""

    images: tuple[str, ...]  # folders, searched at any depth
    image_suffix: str  # end of every image name
    labels: tuple[str, ...] = ()  # folder of the labels for each of images; () = image-only
    label_suffix: str = ""  # what takes the place of image_suffix in the name of a label
    prefixes: tuple[str, ...] = ()  # if any, only images whose names begin with one of them
    made_by: str = ""  # script that makes the label or image files, if one has to be run

    def without_labels(self, *images: str) -> "FolderTree":
        """The same kind of tree, image-only, with other image folders."""
        return FolderTree(images, self.image_suffix, prefixes=self.prefixes, made_by=self.made_by)

    def records(self) -> list[Record]:
        """Lists the folders; sorted, nothing is decoded."""
        root = datasets_root()
        records = []
        for number, folder in enumerate(self.images):
            images = list_files(root / folder, (self.image_suffix,), self.prefixes)
            if not self.labels:
                records += image_records(images)
                continue
            label_folder = root / self.labels[number]
            labels = list_files(label_folder, (self.label_suffix,), self.prefixes)
            records += labelled_records(images, labels, label_folder)
        return records

    def __str__(self) -> str:
        first = self.prefixes[0] if self.prefixes else ""
        lines = [f"  {folder}/**/{first}*{self.image_suffix}" for folder in self.images]
        lines += [f"  {folder}/**/{first}*{self.label_suffix}" for folder in self.labels]
        return "\n".join(lines)


def _load(name: str, tree: FolderTree) -> list[Record]:
    try:
        return tree.records()
    except FileNotFoundError as error:
        made_by = f"If only prepared files are missing, run: python {tree.made_by}\n"
        explained = (
            f"data set {name!r}: {error}.\n"
            f"Expected below {root_in_words()}:\n{tree}\n"
            f"{made_by if tree.made_by else ''}See datasets/README.md."
        )
        error.args = (explained,)
        raise


def _register(
    name: str,
    tree: FolderTree,
    classes: Sequence[str] = CITYSCAPES_CLASSES,
    colors: Sequence[tuple[int, int, int]] = CITYSCAPES_COLORS,
    label_map: LabelMap | None = None,
) -> None:
    """Of a set whose ids are known: a part of it, without some of the classes, is no fault."""
    DatasetCatalog.register(name, partial(_load, name, tree))
    set_metadata(
        name,
        classes,
        colors,
        label_map=label_map if tree.labels else None,
        absent=classes if tree.labels else (),
    )


def set_metadata(
    name: str,
    classes: Sequence[str],
    colors: Sequence[tuple[int, int, int]],
    *,
    label_map: LabelMap | None,
    absent: Sequence[str] = (),
    nodata: Color | None = None,
) -> None:
    """Describes a set in ``MetadataCatalog``.

    Args:
        classes, colors: names and RGB colours, by class index.
        label_map: raw id, or colour, of the label files -> class index; None if they hold class
            indices.
        absent: classes that may have no pixel in the set; of others that is a fault.
        nodata: RGB of the pixels of unlabelled images that show nothing.
    """
    MetadataCatalog.get(name).set(
        stuff_classes=list(classes),
        stuff_colors=list(colors),
        ignore_label=IGNORE_LABEL,
        evaluator_type="sem_seg",
        label_map=None if label_map is None else dict(label_map),
        absent=tuple(absent),
        nodata=nodata,
    )


def check_ignore_label(name: str) -> None:
    """Raises ValueError where a labelled set ignores another label than losses and scores do."""
    value = MetadataCatalog.get(name).get("ignore_label")
    if value != IGNORE_LABEL:
        raise ValueError(
            f"{name}: ignore_label of its metadata is {value}; expected {IGNORE_LABEL}, the label "
            f"that losses and scores leave out: MetadataCatalog.get({name!r}).set(ignore_label="
            f"{IGNORE_LABEL}), with a label_map, or label files, that say so of pixels of no class"
        )


def registered_names() -> list[str]:
    """Names of all sets that this package describes, users' own among them, in order."""
    return [n for n in sorted(DatasetCatalog) if hasattr(MetadataCatalog.get(n), "label_map")]


def load_records(name: str) -> list[Record]:
    """Records of a set, sorted by file name.

    Detectron2's Cityscapes comes in the order of the file system; sampling must not depend on that.
    """
    return sorted(DatasetCatalog.get(name), key=lambda record: record["file_name"])


def register_camvid(name: str, sequences: Sequence[str], split: str, labelled: bool) -> None:
    """Registers sequences of CamVid, in the SegNet tutorial's 480x360 form, as a set of their own.

    Args:
        name: new name, by custom ``camvid_<light>_sem_seg_<split>`` or
            ``camvid_<light>_images_<split>``.
        sequences: first parts of the file names, such as ``["0006R0", "0016E5", "Seq05VD"]`` (day)
            or ``["0001TP"]`` (dusk).
        split: folder of the images, ``train``, ``val`` or ``test``; the labels lie in
            ``<split>annot``.
        labelled: whether the set may read labels.
    Raises: ValueError: the split is unknown, or no sequence is given.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"split expects 'train', 'val' or 'test', got {split!r}")
    if isinstance(sequences, str) or not sequences:
        raise ValueError(f"sequences expects a list of one or more names, got {sequences!r}")
    tree = FolderTree(
        images=(f"CamVid/{split}",),
        image_suffix=".png",
        labels=(f"CamVid/{split}annot",) if labelled else (),
        label_suffix=".png",
        prefixes=tuple(f"{sequence}_" for sequence in sequences),
    )
    # A few hundred frames of some sequences: which classes they show depends on the choice.
    _register(name, tree, CAMVID_CLASSES, CAMVID_COLORS, CAMVID_IDS)


def _register_synthetic() -> None:
    for name, images, labels, made_by in (
        ("gta5", "images", "labels", "prepare_gta5.py"),
        ("gta5_resized", "images", "labels", "prepare_gta5.py --resize"),
        ("synthia", "RGB", "GT/LABELS", "prepare_synthia.py"),
    ):
        tree = FolderTree(
            images=(f"{name}/{images}",),
            image_suffix=".png",
            labels=(f"{name}/{labels}",),
            label_suffix="_labelTrainIds.png",
            made_by=f"datasets/{made_by}",
        )
        _register(f"{name}_sem_seg_train", tree)


def _cityscapes_like(folder: str, split: str, made_by: str) -> FolderTree:
    return FolderTree(
        images=(f"{folder}/leftImg8bit/{split}",),
        image_suffix="_leftImg8bit.png",
        labels=(f"{folder}/gtFine/{split}",),
        label_suffix="_gtFine_labelTrainIds.png",
        made_by=made_by,
    )


def _register_cityscapes() -> None:
    """Image-only Cityscapes; the labelled sets are Detectron2's own, which lack colours."""
    tree = _cityscapes_like("cityscapes", "train", "")
    _register("cityscapes_images_train", tree.without_labels(*tree.images))
    for split in ("train", "val"):
        metadata = MetadataCatalog.get(f"cityscapes_fine_sem_seg_{split}")
        metadata.set(stuff_colors=CITYSCAPES_COLORS, label_map=None)


def _register_streets() -> None:
    source, val = (
        _cityscapes_like("streets", split, "datasets/prepare_streets.py")
        for split in ("source", "val")
    )
    _register("streets_source_sem_seg_train", source)
    _register("streets_target_sem_seg_val", val)
    _register("streets_target_images_train", val.without_labels("streets/leftImg8bit/target"))


def _anonymised(folder: str, *splits: str) -> FolderTree:
    return FolderTree(
        images=tuple(f"{folder}/rgb_anon/{split}" for split in splits),
        image_suffix="_rgb_anon.png",
        labels=tuple(f"{folder}/gt/{split}" for split in splits),
        label_suffix="_gt_labelTrainIds.png",
    )


def _register_adverse() -> None:
    """ACDC, whole and by condition, and Dark Zurich. The test splits have no public labels."""
    conditions = ("fog", "night", "rain", "snow")
    for split in ("train", "val", "test"):
        tree = _anonymised("acdc", *(f"{condition}/{split}" for condition in conditions))
        if split != "test":
            _register(f"acdc_sem_seg_{split}", tree)
        if split != "val":
            _register(f"acdc_images_{split}", tree.without_labels(*tree.images))
    for condition in conditions:
        val = _anonymised("acdc", f"{condition}/val")
        _register(f"acdc_{condition}_sem_seg_val", val)
        test = _anonymised("acdc", f"{condition}/test")
        _register(f"acdc_{condition}_images_test", test.without_labels(*test.images))
    # Evaluated on each condition as well, in the same pass.
    parts = tuple(f"acdc_{condition}_sem_seg_val" for condition in conditions)
    MetadataCatalog.get("acdc_sem_seg_val").set(parts=parts)
    dark = _anonymised("dark_zurich", "val")
    _register("dark_zurich_sem_seg_val", dark)
    for split in ("train", "test"):
        images = dark.without_labels(f"dark_zurich/rgb_anon/{split}/night")
        _register(f"dark_zurich_images_{split}", images)


_register_synthetic()
_register_cityscapes()
_register_streets()
_register_adverse()
register_camvid("camvid_day_sem_seg_train", ["0006R0"], "train", labelled=True)
register_camvid("camvid_dusk_images_train", ["0001TP"], "train", labelled=False)
# For an oracle alone: adaptation takes the image-only set.
register_camvid("camvid_dusk_sem_seg_train", ["0001TP"], "train", labelled=True)
register_camvid("camvid_dusk_sem_seg_val", ["0001TP"], "test", labelled=True)
