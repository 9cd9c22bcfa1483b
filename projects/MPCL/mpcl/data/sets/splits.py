"""The files of a split of a user's own data: in folders, in zip archives, or named by lists."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ...utils.foreign_files import read_text
from ...utils.messages import shown
from ..files import Record, image_records, is_file, is_folder, labelled_records, list_files
from ..labels import Color


@dataclass(frozen=True)
class Split:
    """Where the files of one split lie: folders, also in zip archives, or lists of files. They are
    looked up when the records are asked for."""

    file: Path  # the description
    key: str  # of the split, in the description
    images: tuple[Path, ...]
    labels: tuple[Path, ...]  # a place for each of images; () = image-only
    valid: tuple[Path, ...]  # likewise, of masks that are 0 where an image shows nothing; () = none
    image_suffixes: tuple[str, ...]  # ends of the names in folders
    label_suffix: str  # of masks as well
    of_labels: tuple[str, ...]  # the label_suffix of all splits, where it says more than .png
    label_places: tuple[Path, ...]  # those of labels and masks alone, of all splits
    root: Path | None  # of the files that lists name; None = the folder of each list
    absent: tuple[str, ...]  # classes that may have no pixel
    nodata: Color | None  # RGB of pixels of unlabelled images that show nothing

    def records(self) -> list[Record]:
        """The records of all places, one after the other.

        Raises: FileNotFoundError, ValueError: files are missing or do not belong together; names
            the description and the key.
        """
        try:
            records = [r for number in range(len(self.images)) for r in self._of_place(number)]
            self._check_places(records)
            self._check_nodata(records)
            return records
        except (FileNotFoundError, ValueError) as error:
            error.args = (f"{self.file}: key {self.key!r}: {error}",)
            raise

    def _check_places(self, records: list[Record]) -> None:
        """Raises ValueError where two places hold the same image: it would count twice."""
        if len(self.images) == 1:
            return
        files = Counter(os.path.realpath(record["file_name"]) for record in records)
        twice, number = files.most_common(1)[0]
        if number > 1:
            places = ", ".join(map(str, self.images))
            raise ValueError(f"images {places}: {shown(twice)} is in two of them; expected it once")

    def _check_nodata(self, records: list[Record]) -> None:
        """Raises ValueError where a colour is looked for that the file has not kept."""
        names = (record["file_name"] for record in records if self.nodata is not None)
        if lossy := next((name for name in names if name.lower().endswith((".jpg", ".jpeg"))), ""):
            raise ValueError(
                f"nodata {list(self.nodata or ())} of {shown(lossy)}: JPEG changes colours, so "
                "that part of these pixels would pass for the image; give masks, with the key valid"
            )

    def _of_place(self, number: int) -> list[Record]:
        images = self._listing("images", self.images[number], self.image_suffixes)
        for key, kind, places in (
            ("sem_seg_file_name", "labels", self.labels),
            ("valid_file_name", "valid", self.valid),
        ):
            if places:
                beside = self._beside(images, self.images[number], kind, places[number])
                return labelled_records(images, beside, places[number], key)
        return image_records(images)

    def _beside(
        self, images: Mapping[str, str], image_place: Path, kind: str, place: Path
    ) -> dict[str, str]:
        """Labels or masks by the keys of their images."""
        found = self._listing(kind, place, (self.label_suffix,))
        if is_folder(image_place) != is_folder(place):
            raise ValueError(
                f"images {image_place}, {kind} {place}; expected two folders, or two lists of files"
            )
        if not is_folder(place):
            if len(found) != len(images):
                numbers = f"{len(images)} images and {len(found)} {kind}"
                raise ValueError(f"{numbers}; expected lists of the same length")
            _check_order(images, found, kind)
            return dict(zip(images, found.values()))
        if unused := [key for key in found if key not in images]:
            raise ValueError(
                f"{len(unused)} {kind} without an image, for instance {shown(found[unused[0]])}; "
                f"expected an image in {image_place} for each of them"
                f"{self._advice(unused[0], images)}"
            )
        return found

    def _without_labels(self, files: dict[str, str], place: Path) -> dict[str, str]:
        """Without those that lie beside an image and are called like its label, and those in a
        folder of labels below the images'."""
        stems = {os.path.splitext(path)[0] for path in files.values()}
        labels = {stem + end for stem in stems for end in self.of_labels}
        below = tuple(
            f"{folder.as_posix()}/" for folder in self.label_places if place in folder.parents
        )
        return {
            key: path
            for key, path in files.items()
            if path not in labels and not Path(path).as_posix().startswith(below)
        }

    def _advice(self, label: str, images: Mapping[str, str]) -> str:
        """What a label of no image would need to be called like one of the images."""
        endings = [label.removeprefix(key) for key in images if label.startswith(key)]
        if not endings:
            return ""
        return f". Did you mean label_suffix: {min(endings, key=len)}{self.label_suffix}?"

    def _listing(self, kind: str, path: Path, suffixes: tuple[str, ...]) -> dict[str, str]:
        if is_folder(path):
            found = list_files(path, suffixes)
            return self._without_labels(found, path) if kind == "images" else found
        if not path.exists():
            raise FileNotFoundError(
                f"{kind} {shown(path)} does not exist; expected a folder, also in a zip archive, "
                "or a list of files"
            )
        return _read_list(path, self.root or path.parent)


def _check_order(images: Mapping[str, str], labels: Mapping[str, str], kind: str) -> None:
    """Raises ValueError where two lists hold files of the same names, in different orders: images
    would get each other's labels. Lists of other names pair line by line."""
    ours, theirs = ([Path(line).stem for line in lines] for lines in (images, labels))
    if sorted(ours) == sorted(theirs) and len({*ours}) == len(ours) and ours != theirs:
        line = next(i for i, (a, b) in enumerate(zip(ours, theirs), 1) if a != b)
        raise ValueError(
            f"line {line} of the lists pairs image {ours[line - 1]} with {kind} "
            f"{theirs[line - 1]}, though both lists hold both names; expected one order: sort them"
        )


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
    if len({*files.values()}) != len(named):
        raise ValueError(f"list {path} names a file twice")
    missing = [str(file) for file in files.values() if not is_file(file)]
    if missing or not files:
        found = (
            f"names {len(missing)} missing files, first {shown(missing[0])}"
            if missing
            else "is empty"
        )
        raise FileNotFoundError(f"list {path} {found}")
    return {line: str(file) for line, file in files.items()}
