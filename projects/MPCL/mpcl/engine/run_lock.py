"""One run in an output folder at a time."""

import errno
import fcntl
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

logger = logging.getLogger(__name__)

_FILE = ".lock"


@contextmanager
def only_run_in(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other runs out of a folder as long as the body lasts.

    The lock is the kernel's: it ends with the process, however that ends, and loader workers do not
    inherit it. The file stays.

    Raises: ValueError: another process holds it; names the process and its machine.
    """
    path = Path(folder) / _FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                file.seek(0)
                raise ValueError(
                    f"{folder} belongs to a run that has not ended, {file.read(400).strip()}: wait "
                    "for it, stop it, or choose another OUTPUT_DIR"
                ) from None
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            logger.warning(f"{folder} is on a file system without locks: start one run there only")
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}\n")
        file.flush()
        yield
