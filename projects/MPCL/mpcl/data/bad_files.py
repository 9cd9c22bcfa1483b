"""Files that could not be used: counted where batches are handed out, and named in a report."""

from collections.abc import Callable, Iterable, Mapping

Counts = dict[str, tuple[int, str]]
"""file -> how often it was skipped, and what is wrong with it."""


def add_counts(parts: Iterable[Counts]) -> Counts:
    """Adds up the counts of several processes, in the order in which files were met."""
    total: Counts = {}
    for part in parts:
        for file, (count, reason) in part.items():
            total[file] = (total.get(file, (0, ""))[0] + count, reason)
    return total


class BadFiles:
    """The files that the loaders of a job have skipped, as far as this process knows.

    Args:
        limit: how many different files may be skipped.
    Attributes:
        shared: what all processes know: counts by file up to the last :meth:`share`.
        own: what this one has met since.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.shared: Counts = {}
        self.own: Counts = {}

    @property
    def counts(self) -> Counts:
        """All that is known, in the order in which files were met."""
        return add_counts([self.shared, self.own])

    def share(self, gather: Callable[[Counts], list[Counts]]) -> None:
        """Makes what each process has met known to all, which must all call it.

        Args:
            gather: one object of each process -> all of them, on each process.
        """
        self.shared, self.own = add_counts([self.shared, *gather(self.own)]), {}

    def add(self, reasons: Mapping[str, str], skipped: int = 1) -> list[str]:
        """Counts the files of one draw.

        Returns: the files that were not known before.
        Raises: ValueError: there are more than ``limit`` now.
        """
        if not reasons:
            return []
        new = [file for file in reasons if file not in self.counts]
        met = {file: (skipped, reason) for file, reason in reasons.items()}
        self.own = add_counts([self.own, met])
        if len(self.counts) > self.limit:
            raise ValueError(
                f"{self.report()}\nThese are more than DATALOADER.MAX_BAD_FILES {self.limit}; "
                "repair them, take them out of the set, or set a higher limit"
            )
        return new

    def report(self) -> str:
        """Writes a line for each file; "" if there are none."""
        counts = self.counts
        if not counts:
            return ""
        lines = [
            f"  {file} {reason} [skipped {count} times]" for file, (count, reason) in counts.items()
        ]
        return "\n".join([f"{len(lines)} files could not be used:", *lines])
