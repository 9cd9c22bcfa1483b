"""Files that could not be used: counted where batches are handed out, and named in a report."""

from collections.abc import Mapping

Counts = dict[str, tuple[int, str]]
"""file -> how often it was skipped, and what is wrong with it."""


class BadFiles:
    """The files that a loader has skipped.

    Args:
        limit: this many different files are borne.

    Attributes:
        counts: by file, in the order in which they were met.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.counts: Counts = {}

    def add(self, reasons: Mapping[str, str], skipped: int = 1) -> list[str]:
        """Counts the files of one draw.

        Returns: the files that were not known before.

        Raises:
            ValueError: there are more than ``limit`` now.
        """
        new = [file for file in reasons if file not in self.counts]
        for file, reason in reasons.items():
            self.counts[file] = (self.counts.get(file, (0, ""))[0] + skipped, reason)
        if len(self.counts) > self.limit:
            raise ValueError(
                f"{self.report()}\nThese are more than DATALOADER.MAX_BAD_FILES {self.limit}; "
                "repair them, take them out of the set, or set a higher limit"
            )
        return new

    def report(self) -> str:
        """A line for each file; "" if there are none."""
        if not self.counts:
            return ""
        lines = [
            f"  {file} {reason} [skipped {count} times]"
            for file, (count, reason) in self.counts.items()
        ]
        return "\n".join([f"{len(lines)} files could not be used:", *lines])
