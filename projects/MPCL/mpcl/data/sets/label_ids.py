"""What the ids in a set's labels mean: which are ignored, which classes have no pixel, and why.

A mask of 0 and 255 read without a map is background and "ignore": a network that says background
everywhere scores 100. So ids are counted as they are in the files, before any map.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...utils.ignore_label import IGNORE_LABEL
from ..labels import LabelMap, fold_ids, lookup_table, maps_colors

_FEW_IDS = 8  # that no map names may be unlabelled things; more may be smooth edges


@dataclass(frozen=True)
class LabelIds:
    """The ids of some label files of one set."""

    ids: NDArray[np.int64]  # (256,) pixels of each raw id
    classes: Sequence[str]
    label_map: LabelMap | None
    absent: Sequence[str]  # classes that may have no pixel

    @property
    def empty_classes(self) -> list[str]:
        """Classes without a pixel."""
        pixels = fold_ids(self.ids, self.label_map)
        return [name for name, count in zip(self.classes, pixels) if not count]

    def ignored(self) -> list[int]:
        """Ids that are found and become "ignored", the most frequent first."""
        ignored = lookup_table(self.label_map) == IGNORE_LABEL
        found = np.flatnonzero(ignored & (self.ids > 0))
        return [int(raw) for raw in found[np.argsort(-self.ids[found], kind="stable")]]

    def unnamed(self) -> list[int]:
        """Those of :meth:`ignored` that a label map does not name at all."""
        if self.label_map is None or maps_colors(self.label_map):
            return []
        return [raw for raw in self.ignored() if raw not in self.label_map]

    def unnamed_note(self) -> str:
        """That pixels are ignored whose ids no map names; "" if there are none."""
        share = self.ids[self.unnamed()].sum() / max(1, self.ids.sum())
        if not share:
            return ""
        return (
            f"{share:.1%} of the pixels have ids that label_map does not name, and are ignored: "
            f"{self.ignored_in_words()}; if that is meant, name them: ignore"
        )

    def ignored_in_words(self) -> str:
        """Each id that becomes "ignored", with its share of all pixels."""
        total = max(1, int(self.ids.sum()))
        unnamed, ignored = set(self.unnamed()), self.ignored()
        words = [
            f"id {raw} ({self.ids[raw] / total:.2%}{', not named' if raw in unnamed else ''})"
            for raw in ignored[:8]
        ]
        if rest := ignored[8:]:
            words.append(f"{len(rest)} other ids ({self.ids[rest].sum() / total:.2%})")
        return ", ".join(words) or "none"

    @property
    def usable(self) -> bool:
        """Whether at least two classes have pixels."""
        return len(self.classes) - len(self.empty_classes) >= 2

    def faults(self, sample: bool = False) -> list[str]:
        """What is wrong with the labels as they are described, in sentences.

        Args:
            sample: the files are a part of the set, where classes may be missing by chance: they
                are reported only if ids are ignored that no map names.
        """
        empty = self.empty_classes
        missing = [name for name in empty if name not in self.absent]
        if sample and not self.unnamed():
            missing = []
        faults = []
        if not self.usable:
            seen = [name for name in self.classes if name not in empty]
            faults.append(f"no class but {seen[0]} has a pixel" if seen else "no class has a pixel")
        elif missing:
            faults.append(
                f"no pixel has the class {', '.join(missing)} (if that is meant, say "
                f"absent: [{', '.join(missing)}] in the description of the data)"
            )
        if self._smooth():
            faults.append(
                f"{len(self.unnamed())} different ids are not named by label_map, as in masks with "
                "smooth edges; export them without antialiasing, or resize them by nearest"
            )
        if faults and self.ignored():
            faults[-1] += f". Ignored: {self.ignored_in_words()}{self._suggestion()}"
        return faults

    def _smooth(self) -> bool:
        """Whether ids look like the greys between two classes: many, and each less frequent than
        any that the map names."""
        unnamed = self.unnamed()
        if len(unnamed) <= _FEW_IDS:
            return False
        named = [self.ids[raw] for raw in self.label_map if self.ids[raw]]
        return bool(named) and self.ids[unnamed].max() < min(named)

    def _suggestion(self) -> str:
        """As many frequent ids as there are classes, in their order, as a map; "" if that is no
        news, or takes for a class what is ignored on purpose: an id that the map says so of, or 255
        beside 0, 1, 2, ..."""
        on_purpose = set(self.ignored()) - set(self.unnamed()) if self.label_map else set()
        found = np.flatnonzero(self.ids > 0.001 * self.ids.sum()).tolist()
        frequent = [raw for raw in found if raw not in on_purpose]
        *indices, last = frequent or [0]
        if last == IGNORE_LABEL and len(indices) > 1 and indices == list(range(len(indices))):
            return ""
        if len(frequent) > len(self.classes) == 2:  # smooth edges lie between the two
            frequent = [frequent[0], frequent[-1]]
        today = lookup_table(self.label_map)[frequent].tolist()
        if len(frequent) != len(self.classes) or today == list(range(len(frequent))):
            return ""
        pairs = ", ".join(f"{raw}: {name}" for raw, name in zip(frequent, self.classes))
        return f". Did you mean label_map: {{{pairs}}}?"
