"""Files that are old or new, never half of both."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

TEMPORARY = ".tmp"
"""Suffix of a file that is being written; one that a kill has left behind is of no use."""


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Writes a file so that, whenever the process or the machine stops, ``path`` is either what it
    was or the whole new content.

    Args:
        content: the bytes, or a function that writes them to a file.
    Raises: OSError: it could not be written; ``path`` is what it was.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with open(temporary, "wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        # torch.save reports a failed write in words of its own; the cause is in the chain.
        cause = next((e for e in _chain(error) if isinstance(e, OSError)), None)
        if cause is None:
            raise
        raise OSError(cause.errno, cause.strerror or str(cause), str(path)) from error


def _sync_folder(folder: Path) -> None:
    """Brings a rename to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems have none
            raise
    finally:
        os.close(descriptor)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
