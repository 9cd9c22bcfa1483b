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

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog
from matplotlib import colormaps

from ...utils.foreign_files import read_yaml
from ...utils.ignore_label import IGNORE_LABEL
from ...utils.messages import short
from ..files import IMAGE_SUFFIXES, is_folder
from ..labels import Color, LabelMap, identity_except
from .registration import set_metadata
from .splits import Split

_KEYS = ("name", "classes", "colors", "label_map", "label_colors", "ignore", "absent", "splits")
_SPLIT = ("images", "labels", "valid", "image_suffix", "label_suffix", "root", "absent", "nodata")
_registered: dict[str, tuple[Path, Any]] = {}  # name -> its file and what the file said


def register_from_yaml(path: str | Path) -> list[str]:
    """Registers the data sets that a YAML file describes; their folders are looked up when a set is
    first used.

    A labelled split becomes ``<name>_sem_seg_<split>``, one without ``labels`` becomes
    ``<name>_images_<split>``, whose records lead to no label. Registering an unchanged file again
    is harmless.

    Returns: the registered names, in the order of the file.
    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: anything else that is wrong; names the file, the key, the value and what was
            expected.
    """
    file = Path(path).expanduser().resolve()
    if not file.exists():
        raise FileNotFoundError(f"data set description {file} does not exist")
    content = read_yaml(file)
    try:
        return _register(file, content)
    except _Fault as fault:
        raise ValueError(f"{file}: {fault}") from None


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


class _Fault(ValueError):
    """A mistake in a description."""

    def __init__(self, key: str, value: object, expected: str) -> None:
        super().__init__(f"key {key!r}: got {short(value)}, expected {expected}")


def _register(file: Path, content: object) -> list[str]:
    description = _mapping("(whole file)", content, _KEYS)
    name = _word("name", description.get("name"))
    classes = _classes(description.get("classes"))
    colors = _colors(description.get("colors"), classes)
    label_map = _label_map(description, classes)
    absent = _absent("absent", description.get("absent"), classes)
    splits = {
        f"{name}_{'sem_seg' if split.labels else 'images'}_{key}": split
        for key, split in _splits(file, description.get("splits"), classes).items()
    }
    for registered in splits:
        if registered in DatasetCatalog and _registered.get(registered) != (file, description):
            other = _registered.get(registered, ["a built-in data set"])[0]
            raise _Fault("name", registered, f"names that are free; {other} has this one")
    for registered, split in splits.items():
        if registered not in DatasetCatalog:
            DatasetCatalog.register(registered, split.records)
            set_metadata(
                registered,
                classes,
                colors,
                label_map=label_map if split.labels else None,
                absent=(*absent, *split.absent) if split.labels else (),
                nodata=split.nodata,
            )
            _registered[registered] = (file, description)
    return list(splits)


def _mapping(key: str, value: object, known: Sequence[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Fault(key, value, f"a mapping with keys among {', '.join(known)}")
    for unknown in value:
        if unknown not in known:
            where = str(unknown) if key.startswith("(") else f"{key}.{unknown}"
            of_file = unknown in _KEYS and known is _SPLIT
            hint = (
                " (a key of the whole file: give this split a file of its own)" if of_file else ""
            )
            raise _Fault(where, value[unknown], f"one of the keys {', '.join(known)}{hint}")
    return value


def _word(key: str, value: object) -> str:
    if not isinstance(value, str) or not value or any(c.isspace() or c in "/\\" for c in value):
        raise _Fault(key, value, "a word without spaces and slashes")
    return value


def _classes(value: object) -> list[str]:
    if not isinstance(value, list) or not 2 <= len(value) <= IGNORE_LABEL:
        expected = "a list of 2 to 255 names, by class index: the background is a class as well"
        raise _Fault("classes", value, expected)
    for name in value:
        # YAML reads the bare words yes, no, on and off as booleans.
        if not isinstance(name, str) or not name:
            raise _Fault("classes", name, "names (quote words such as 'no', 'off' or '1')")
        if value.count(name) > 1:
            raise _Fault("classes", name, "every name once")
    return value


def _colors(value: object, classes: Sequence[str]) -> list[Color]:
    if value is None:
        return class_colors(classes)
    if not isinstance(value, list) or len(value) != len(classes):
        raise _Fault("colors", value, f"a list of {len(classes)} colours, one a class")
    return [_color("colors", color) for color in value]


def _color(key: str, value: object) -> Color:
    levels = value if isinstance(value, list) else []
    if len(levels) != 3 or not all(_is_id(level) for level in levels):
        raise _Fault(key, value, "[red, green, blue], each in 0..255")
    return levels[0], levels[1], levels[2]


def _absent(key: str, value: object, classes: Sequence[str]) -> tuple[str, ...]:
    names = [] if value is None else value
    if not isinstance(names, list) or not all(name in classes for name in names):
        raise _Fault(key, value, f"a list of classes ({', '.join(classes)})")
    return tuple(names)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 255


def _label_map(description: Mapping[str, Any], classes: Sequence[str]) -> LabelMap | None:
    value, ignore = description.get("label_map"), description.get("ignore")
    if "label_colors" in description:
        for key in ("label_map", "ignore"):
            if key in description:
                expected = "no such key beside label_colors, in which ignore has colours as well"
                raise _Fault(key, description[key], expected)
        return _color_map(description["label_colors"], classes)
    ignored: list[Any] = [] if ignore is None else ignore if isinstance(ignore, list) else [ignore]
    for raw in ignored:
        if not _is_id(raw):
            raise _Fault("ignore", raw, "an id in 0..255, or a list of such ids")
    if value is None:
        for raw in ignored:
            if raw < len(classes):
                raise _Fault(
                    "ignore", ignore, f"no id of a class ({classes[raw]!r}), or a label_map"
                )
        return identity_except(*ignored) if ignored else None
    if not isinstance(value, dict) or not value:
        raise _Fault("label_map", value, "a mapping from ids to class names or indices")
    for raw in value:
        if not _is_id(raw) or raw in ignored:
            raise _Fault("label_map", raw, "ids in 0..255 that are not named by the key ignore")
    return {raw: _class_index(raw, target, classes) for raw, target in value.items()}


def _color_map(value: object, classes: Sequence[str]) -> dict[Color, int]:
    if not isinstance(value, dict) or not value:
        expected = "a mapping from class names, and ignore, to [red, green, blue], or lists of such"
        raise _Fault("label_colors", value, expected)
    found: dict[Color, int] = {}
    for name, colors in value.items():
        key = f"label_colors.{name}"
        if name not in classes and name != "ignore":
            raise _Fault(key, name, f"a class name ({', '.join(classes)}), or ignore")
        several = isinstance(colors, list) and colors and isinstance(colors[0], list)
        for color in [_color(key, c) for c in (colors if several else [colors])]:
            if color in found:
                raise _Fault(key, list(color), "every colour once")
            found[color] = classes.index(name) if name in classes else IGNORE_LABEL
    return found


def _class_index(raw: int, target: object, classes: Sequence[str]) -> int:
    if target in ("ignore", IGNORE_LABEL) and target not in classes:
        return IGNORE_LABEL
    if isinstance(target, str) and target in classes:
        return classes.index(target)
    if _is_id(target) and target < len(classes):
        return target
    known = f"a class name ({', '.join(classes)}), an index below {len(classes)}, or 'ignore'"
    raise _Fault(f"label_map.{raw}", target, known)


def _splits(file: Path, value: object, classes: Sequence[str]) -> dict[str, Split]:
    if not isinstance(value, dict) or not value:
        raise _Fault("splits", value, "a mapping from names of splits to their folders")
    splits = {_word("splits", key): _split(file, key, one, classes) for key, one in value.items()}
    # Such as _mask.png, in the folder of the images, whichever split is made of that.
    ends = {split.label_suffix for split in splits.values()} - {*IMAGE_SUFFIXES}
    places = {place for split in splits.values() for place in (*split.labels, *split.valid)}
    places -= {place for split in splits.values() for place in split.images}
    labels = {"of_labels": tuple(sorted(ends)), "label_places": tuple(sorted(places))}
    return {key: replace(split, **labels) for key, split in splits.items()}


def _split(file: Path, name: str, value: object, classes: Sequence[str]) -> Split:
    key = f"splits.{name}"
    entry = _mapping(key, value, _SPLIT)
    images = _places(file, f"{key}.images", entry.get("images"))
    beside = {
        kind: _places(file, f"{key}.{kind}", entry[kind], len(images)) if kind in entry else ()
        for kind in ("labels", "valid")
    }
    for suffix in ("image_suffix", "label_suffix"):
        if not isinstance(entry.get(suffix, ".png"), str) or not entry.get(suffix, ".png"):
            raise _Fault(f"{key}.{suffix}", entry[suffix], "the end of a file name: '.png'")
    for unlabelled in ("nodata", "valid"):
        if unlabelled in entry and beside["labels"]:
            expected = "labels that say ignore there instead"
            raise _Fault(f"{key}.{unlabelled}", entry[unlabelled], expected)
    root = None
    if "root" in entry:
        (root,) = _places(file, f"{key}.root", entry["root"], 1)
        if any(map(is_folder, images)):
            raise _Fault(f"{key}.root", entry["root"], "images that are a list")
    return Split(
        file=file,
        key=key,
        images=images,
        **beside,
        image_suffixes=(entry["image_suffix"],) if "image_suffix" in entry else IMAGE_SUFFIXES,
        label_suffix=entry.get("label_suffix", ".png"),
        of_labels=(),
        label_places=(),
        root=root and root.resolve(),
        absent=_absent(f"{key}.absent", entry.get("absent"), classes),
        nodata=_color(f"{key}.nodata", entry["nodata"]) if "nodata" in entry else None,
    )


def _places(file: Path, key: str, value: object, number: int = 0) -> tuple[Path, ...]:
    """One path, or a list of them; ``number`` of them if that is not 0."""
    paths = value if isinstance(value, list) else [value]
    if not paths or not all(isinstance(path, str) and path for path in paths):
        expected = "a folder, also in a zip archive, a text file that lists one file a line"
        raise _Fault(key, value, f"{expected}, or a list of such")
    if number and len(paths) != number:
        raise _Fault(key, value, f"one for each of the {number} places of images")
    return tuple(file.parent / Path(path).expanduser() for path in paths)
