"""A user's own data: one YAML file that names folders and classes becomes registered data sets.

    name: leaves
    classes: [background, leaf, rust]
    colors: [[0, 0, 0], [60, 160, 60], [190, 90, 30]]   # optional
    label_map: {0: background, 128: leaf, 255: rust}    # optional: id in the files -> class
    ignore: 7                                           # optional: id, or ids, of no class
    absent: [rust]                                      # optional: may have no pixel
    splits:
      train: {images: greenhouse/images, labels: greenhouse/masks}  # -> leaves_sem_seg_train
      field_train: {images: field/images}                           # -> leaves_images_field_train

Relative paths start at the folder of the YAML file. ``datasets/README.md`` explains every key.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from detectron2.data import DatasetCatalog
from matplotlib import colormaps

from ...utils.foreign_files import read_text, read_yaml
from ...utils.short import short, shown
from ..files import IMAGE_SUFFIXES, Record, image_records, labelled_records, list_files
from ..labels import IGNORE_LABEL, Color, LabelMap, identity_except
from .registration import set_metadata

_KEYS = ("name", "classes", "colors", "label_map", "label_colors", "ignore", "absent", "splits")
_SPLIT_KEYS = ("images", "labels", "image_suffix", "label_suffix", "root", "absent", "nodata")
_registered: dict[str, tuple[Path, Any]] = {}  # name -> its file and what the file said


class _Fault(ValueError):
    def __init__(self, file: Path, key: str, value: object, expected: str) -> None:
        super().__init__(f"{file}: key {key!r}: got {short(value)}, expected {expected}")


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML lets the last of two equal keys win in silence; here that is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = sorted({str(key) for key in keys if keys.count(key) > 1})
        if twice:
            line = node.start_mark.line + 1
            raise ValueError(f"the mapping at line {line} has a key twice: {', '.join(twice)}")
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class _Split:
    """Files of one split: folders, or lists of files, of images and (if it is labelled) labels."""

    file: Path
    key: str
    images: Path
    labels: Path | None
    image_suffixes: tuple[str, ...]
    label_suffix: str
    root: Path | None  # of the files that lists name; None: the folder of each list
    absent: tuple[str, ...]  # classes that may have no pixel
    nodata: Color | None  # of pixels of unlabelled images that show nothing

    def records(self) -> list[Record]:
        try:
            return self._records()
        except _Fault:
            raise
        except (FileNotFoundError, ValueError) as error:
            error.args = (f"{self.file}: key {self.key!r}: {error}",)
            raise

    def _records(self) -> list[Record]:
        images = self._listing(self.images, self.image_suffixes)
        if self.labels is None:
            return image_records(images)
        labels = self._listing(self.labels, (self.label_suffix,))
        if self.labels.is_file():
            if len(labels) != len(images):
                found = f"{len(images)} images and {len(labels)} labels"
                raise _Fault(self.file, self.key, found, "lists of the same length")
            labels = dict(zip(images, labels.values()))
        unused = [path for key, path in labels.items() if key not in images]
        if unused:
            found = f"{len(unused)} labels without an image, for instance {shown(unused[0])}"
            raise _Fault(self.file, self.key, found, f"an image in {self.images} for every label")
        return labelled_records(images, labels, self.labels)

    def _listing(self, path: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
        if path.is_dir():
            return list_files(path, suffixes)
        return _read_list(path, self.root or path.parent)


def _read_list(path: Path, root: Path) -> dict[str, str]:
    """One path a line, below ``root``; keeps the order of the lines.

    A list may come with a download, unlike the description that names it: no line leads out of the
    root. Links are followed, as in folders.
    """
    text = read_text(path)
    named = [line.strip() for line in text.splitlines() if line.strip()]
    files = {line: Path(os.path.normpath(root / line)) for line in named}
    outside = [line for line, file in files.items() if not file.is_relative_to(root)]
    if outside:
        raise ValueError(
            f"list {path} names {len(outside)} files outside {root}, first {outside[0]!r}; "
            "expected paths below it: if they are meant, name their common folder with the split's "
            "key root"
        )
    if len(files) != len(named):
        raise ValueError(f"list {path} names a file twice")
    missing = [str(file) for file in files.values() if not file.is_file()]
    if missing or not files:
        found = (
            f"names {len(missing)} missing files, first {shown(missing[0])}"
            if missing
            else "is empty"
        )
        raise FileNotFoundError(f"list {path} {found}")
    return {line: str(file) for line, file in files.items()}


def register_from_yaml(path: str | Path) -> list[str]:
    """Registers the data sets that a YAML file describes; reads no image.

    A labelled split becomes ``<name>_sem_seg_<split>``, one without ``labels`` becomes
    ``<name>_images_<split>``, whose records lead to no label. Registering an unchanged file again
    is harmless.

    Returns:
        the registered names, in the order of the file.

    Raises:
        FileNotFoundError: the file itself or something that it names does not exist.
        ValueError: anything else that is wrong; both name the file, the key, the value and what was
            expected.
    """
    file = Path(path).expanduser().resolve()
    description = _read(file)
    name = _text(file, "name", description.get("name"))
    classes = _classes(file, description.get("classes"))
    colors = _colors(file, description.get("colors"), classes)
    label_map = _label_map(file, description, classes)
    absent = _absent(file, "absent", description.get("absent"), classes)
    splits = {
        f"{name}_{'images' if split.labels is None else 'sem_seg'}_{key}": split
        for key, split in _splits(file, description.get("splits"), classes).items()
    }
    _refuse_taken_names(file, description, splits)
    for registered, split in splits.items():
        if registered not in DatasetCatalog:
            DatasetCatalog.register(registered, split.records)
            described = (label_map, (*absent, *split.absent)) if split.labels else (None, ())
            set_metadata(registered, classes, colors, *described, split.nodata)
            _registered[registered] = (file, description)
    return list(splits)


def class_colors(classes: Sequence[str]) -> list[Color]:
    """RGB colours that differ: matplotlib's tab20, of more than 18 classes its turbo. Grey is left
    to a class named background."""
    tab20 = [color for color in colormaps["tab20"].colors if len(set(color)) > 1]
    few = len(classes) <= len(tab20)  # the strong ones first
    found = (
        [*tab20[::2], *tab20[1::2]] if few else colormaps["turbo"].resampled(len(classes)).colors
    )
    colors = [tuple(round(255 * float(level)) for level in color[:3]) for color in found]
    return [
        (128, 128, 128) if name.lower() == "background" else color
        for name, color in zip(classes, colors)
    ]


def _read(file: Path) -> dict[str, Any]:
    if not file.exists():
        raise FileNotFoundError(f"data set description {file} does not exist")
    description = read_yaml(file, _UniqueKeyLoader)
    return _mapping(file, "(whole file)", description, _KEYS)


def _mapping(file: Path, key: str, value: object, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Fault(file, key, value, f"a mapping with keys among {', '.join(known)}")
    for unknown in value:
        if unknown not in known:
            where = str(unknown) if key.startswith("(") else f"{key}.{unknown}"
            raise _Fault(file, where, value[unknown], f"one of the keys {', '.join(known)}")
    return value


def _text(file: Path, key: str, value: object) -> str:
    if not isinstance(value, str) or not value or any(c.isspace() or c in "/\\" for c in value):
        raise _Fault(file, key, value, "a word without spaces and slashes")
    return value


def _classes(file: Path, value: object) -> list[str]:
    if not isinstance(value, list) or not 2 <= len(value) <= IGNORE_LABEL:
        expected = "a list of 2 to 255 names, by class index: the background is a class as well"
        raise _Fault(file, "classes", value, expected)
    for name in value:
        # YAML reads the bare words yes, no, on and off as booleans.
        if not isinstance(name, str) or not name:
            raise _Fault(file, "classes", name, "names (quote words such as 'no', 'off' or '1')")
        if value.count(name) > 1:
            raise _Fault(file, "classes", name, "every name once")
    return value


def _colors(file: Path, value: object, classes: Sequence[str]) -> list[Color]:
    if value is None:
        return class_colors(classes)
    if not isinstance(value, list) or len(value) != len(classes):
        raise _Fault(file, "colors", value, f"a list of {len(classes)} colours, one a class")
    return [_color(file, "colors", color) for color in value]


def _color(file: Path, key: str, value: object) -> Color:
    levels = value if isinstance(value, list) else []
    if len(levels) != 3 or not all(_is_id(level) for level in levels):
        raise _Fault(file, key, value, "[red, green, blue], each in 0..255")
    return levels[0], levels[1], levels[2]


def _absent(file: Path, key: str, value: object, classes: Sequence[str]) -> tuple[str, ...]:
    names = [] if value is None else value
    if not isinstance(names, list) or not all(name in classes for name in names):
        raise _Fault(file, key, value, f"a list of classes ({', '.join(classes)})")
    return tuple(names)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _label_map(
    file: Path, description: Mapping[str, Any], classes: Sequence[str]
) -> LabelMap | None:
    value, ignore = description.get("label_map"), description.get("ignore")
    if "label_colors" in description:
        for key in ("label_map", "ignore"):
            if key in description:
                expected = "no such key beside label_colors, in which ignore has colours as well"
                raise _Fault(file, key, description[key], expected)
        return _color_map(file, description["label_colors"], classes)
    ignored: list[Any] = [] if ignore is None else ignore if isinstance(ignore, list) else [ignore]
    for raw in ignored:
        if not _is_id(raw):
            raise _Fault(file, "ignore", raw, "an id in 0..255, or a list of such ids")
    if value is None:
        classes_lost = [raw for raw in ignored if raw < len(classes)]
        if classes_lost:
            name = classes[classes_lost[0]]
            raise _Fault(file, "ignore", ignore, f"no id of a class ({name!r}), or a label_map")
        return identity_except(*ignored) if ignored else None
    if not isinstance(value, dict) or not value:
        raise _Fault(file, "label_map", value, "a mapping from ids to class names or indices")
    for raw in value:
        if not _is_id(raw) or raw in ignored:
            expected = "ids in 0..255 that are not named by the key ignore"
            raise _Fault(file, "label_map", raw, expected)
    return {raw: _class_index(file, raw, target, classes) for raw, target in value.items()}


def _color_map(file: Path, value: object, classes: Sequence[str]) -> dict[Color, int]:
    if not isinstance(value, dict) or not value:
        expected = "a mapping from class names, and ignore, to [red, green, blue], or lists of such"
        raise _Fault(file, "label_colors", value, expected)
    found: dict[Color, int] = {}
    for name, colors in value.items():
        key = f"label_colors.{name}"
        if name not in classes and name != "ignore":
            raise _Fault(file, key, name, f"a class name ({', '.join(classes)}), or ignore")
        several = isinstance(colors, list) and colors and isinstance(colors[0], list)
        for color in [_color(file, key, c) for c in (colors if several else [colors])]:
            if color in found:
                raise _Fault(file, key, list(color), "every colour once")
            found[color] = classes.index(name) if name in classes else IGNORE_LABEL
    return found


def _class_index(file: Path, raw: int, target: object, classes: Sequence[str]) -> int:
    if target in ("ignore", IGNORE_LABEL) and target not in classes:
        return IGNORE_LABEL
    if isinstance(target, str) and target in classes:
        return classes.index(target)
    if _is_id(target) and isinstance(target, int) and target < len(classes):
        return target
    known = f"a class name ({', '.join(classes)}), an index below {len(classes)}, or 'ignore'"
    raise _Fault(file, f"label_map.{raw}", target, known)


def _splits(file: Path, value: object, classes: Sequence[str]) -> dict[str, _Split]:
    if not isinstance(value, dict) or not value:
        raise _Fault(file, "splits", value, "a mapping from names of splits to their folders")
    return {
        _text(file, "splits", key): _split(file, key, one, classes) for key, one in value.items()
    }


def _split(file: Path, name: str, value: object, classes: Sequence[str]) -> _Split:
    key = f"splits.{name}"
    entry = _mapping(file, key, value, _SPLIT_KEYS)
    images = _existing(file, f"{key}.images", entry.get("images"))
    labels = _existing(file, f"{key}.labels", entry["labels"]) if "labels" in entry else None
    if labels is not None and images.is_dir() != labels.is_dir():
        expected = "two folders, or two lists of files"
        raise _Fault(file, key, f"images {images}, labels {labels}", expected)
    for suffix in ("image_suffix", "label_suffix"):
        if not isinstance(entry.get(suffix, ".png"), str) or not entry.get(suffix, ".png"):
            raise _Fault(file, f"{key}.{suffix}", entry[suffix], "the end of a file name: '.png'")
    suffixes = (entry["image_suffix"],) if "image_suffix" in entry else IMAGE_SUFFIXES
    root = _existing(file, f"{key}.root", entry["root"]) if "root" in entry else None
    if root is not None and (images.is_dir() or not root.is_dir()):
        raise _Fault(file, f"{key}.root", entry["root"], "a folder, for images that are a list")
    suffix = entry.get("label_suffix", ".png")
    absent = _absent(file, f"{key}.absent", entry.get("absent"), classes)
    nodata = _color(file, f"{key}.nodata", entry["nodata"]) if "nodata" in entry else None
    if nodata and labels:
        raise _Fault(file, f"{key}.nodata", entry["nodata"], "labels that say ignore there instead")
    folder = root and root.resolve()
    return _Split(file, key, images, labels, suffixes, suffix, folder, absent, nodata)


def _existing(file: Path, key: str, value: object) -> Path:
    if not isinstance(value, str) or not value:
        raise _Fault(file, key, value, "a folder, or a text file that lists one file a line")
    path = file.parent / Path(value).expanduser()
    if not path.exists():
        found = f"{file}: key {key!r}: got {value!r}, expected a folder or a list of files"
        raise FileNotFoundError(f"{found}, but {path} does not exist")
    return path


def _refuse_taken_names(file: Path, description: object, names: Mapping[str, object]) -> None:
    for name in names:
        if name in DatasetCatalog and _registered.get(name) != (file, description):
            other = _registered[name][0] if name in _registered else "a built-in data set"
            raise _Fault(file, "name", name, f"names that are free; {other} has this one")
