"""Files in zip archives, read where they lie: ``data/images.zip/day/0.png`` names one of them."""

import errno
import os
import re
import struct
import zipfile
import zlib
from functools import lru_cache
from typing import NamedTuple

from .messages import AnyPath

_END = re.compile(r"\.zip(?=/|$)", re.IGNORECASE)
_ENCRYPTED = 0x1  # bit of an entry's flags

DAMAGED = (
    *(zipfile.BadZipFile, struct.error, zlib.error, EOFError),
    *(ValueError, LookupError, RuntimeError, OverflowError),
)
"""What zipfile raises for archives that are damaged, encrypted or forged."""


class InZip(NamedTuple):
    """A place in an archive: a file, or a folder; ``name`` is "" for its root."""

    archive: str
    name: str


def in_zip(path: AnyPath) -> InZip | None:
    """Where a path leads in an archive; None of a path that goes through none."""
    text = os.fspath(path)
    for end in _END.finditer(text):
        if os.path.isfile(text[: end.end()]):  # not a folder that is called so
            return InZip(text[: end.end()], text[end.end() :].strip("/"))
    return None


def on_disk(path: AnyPath) -> str:
    """The path itself, or that of the archive that it leads into."""
    place = in_zip(path)
    return place.archive if place else os.fspath(path)


def names_below(folder: InZip) -> list[str]:
    """Names, from the root of the archive on, of the files in a folder and its folders.

    Raises: ValueError: the archive is damaged.
    """
    start = f"{folder.name}/" if folder.name else ""
    entries = _opened(folder.archive).infolist()
    return [e.filename for e in entries if e.filename.startswith(start) and not e.is_dir()]


def holds(file: InZip) -> bool:
    """Whether the archive has such a file. Raises ValueError: it is damaged."""
    return file.name in _opened(file.archive).NameToInfo


def size_of(file: InZip) -> int:
    """Bytes of a file once it is unfolded, as the archive says.

    Raises:
        FileNotFoundError: the archive has no such file.
        ValueError: the archive is damaged, or the file cannot be unfolded; says why.
    """
    return _entry(file).file_size


def read(file: InZip) -> bytes:
    """The content of a file: as many bytes as :func:`size_of` says, whose checksum agrees.

    Raises: as :func:`size_of`.
    """
    entry = _entry(file)
    try:
        with _opened(file.archive).open(entry) as stream:
            content = stream.read(entry.file_size)  # no more, whatever it would unfold to
        if len(content) != entry.file_size:
            raise EOFError(f"it has {len(content)} bytes instead of {entry.file_size}")
    except DAMAGED as error:
        raise ValueError(f"cannot be unpacked: {str(error) or 'it is cut'}") from None
    return content


def _entry(file: InZip) -> zipfile.ZipInfo:
    entry = _opened(file.archive).NameToInfo.get(file.name)
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/".join(file))
    if entry.flag_bits & _ENCRYPTED:
        raise ValueError("is encrypted; unpack it, or pack it without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"is packed by method {entry.compress_type}; expected 0 (stored) or 8 (deflated): pack "
            "it again, best without compression"
        )
    return entry


def _opened(archive: str) -> zipfile.ZipFile:
    status = os.stat(archive)
    return _open(archive, status.st_mtime_ns, status.st_size, os.getpid())


@lru_cache(maxsize=64)
def _open(path: str, _changed: int, _size: int, _process: int) -> zipfile.ZipFile:
    """An archive of a process's own: those before and after a fork would share the position."""
    try:
        return zipfile.ZipFile(path)
    except DAMAGED as error:
        raise ValueError(f"{path} is no readable zip archive ({error})") from error
