"""Files in zip archives, read where they lie: ``data/images.zip/day/0.png`` names one of them.

Reading moves no position in an open file, which threads, and processes after a fork, would share.
:mod:`zipfile` finds the files; its streams would take several times as long to read them.
"""

import errno
import os
import re
import struct
import zipfile
import zlib
from functools import lru_cache
from typing import NamedTuple

from .short import AnyPath

_END = re.compile(r"\.zip(?=/|$)", re.IGNORECASE)
_ENCRYPTED = 0x1  # bit of an entry's flags
_HEADER = struct.Struct("<4s22xHH")  # in front of a file: mark, lengths of its name and of the rest
_DAMAGED = (
    *(zipfile.BadZipFile, struct.error, EOFError),
    *(ValueError, LookupError, RuntimeError, OverflowError),
)


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
    entries = _opened(folder.archive).entries
    return [e.filename for e in entries if e.filename.startswith(start) and not e.is_dir()]


def holds(file: InZip) -> bool:
    """Whether the archive has such a file. Raises ValueError: it is damaged."""
    return file.name in _opened(file.archive).by_name


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
    entry, stream = _entry(file), _opened(file.archive).file.fileno()
    start = os.pread(stream, _HEADER.size, entry.header_offset)
    try:
        mark, *lengths = _HEADER.unpack(start)
    except struct.error:
        mark, lengths = b"", []
    if mark != b"PK\x03\x04":
        raise ValueError("cannot be unpacked: the archive is damaged or cut")
    place = entry.header_offset + _HEADER.size + sum(lengths)
    content = os.pread(stream, entry.compress_size, place)
    if entry.compress_type == zipfile.ZIP_DEFLATED and entry.file_size:  # 0 would be no bound
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, entry.file_size)
        except zlib.error as error:
            raise ValueError(f"cannot be unpacked: {error}") from None
    if len(content) != entry.file_size or zlib.crc32(content) != entry.CRC:
        raise ValueError("cannot be unpacked: its bytes are not those that were packed")
    return content


def _entry(file: InZip) -> zipfile.ZipInfo:
    """A file's entry, of which little memory suffices to read it."""
    entry = _opened(file.archive).by_name.get(file.name)
    if entry is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/".join(file))
    if entry.flag_bits & _ENCRYPTED:
        raise ValueError("is encrypted; unpack it, or pack it without a password")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(
            f"is packed by method {entry.compress_type}; expected 0 (stored) or 8 (deflated): pack "
            "it again, best without compression"
        )
    if entry.compress_size > 2 * entry.file_size + 1024:
        raise ValueError("cannot be unpacked: its packed size is none of its size")
    return entry


class _Archive:
    """An archive's directory, and the archive, open."""

    def __init__(self, path: str) -> None:
        with zipfile.ZipFile(path) as archive:
            self.entries = archive.infolist()
        self.by_name = {entry.filename: entry for entry in self.entries if not entry.is_dir()}
        self.file = open(path, "rb", buffering=0)  # noqa: SIM115


def _opened(archive: str) -> _Archive:
    status = os.stat(archive)
    return _archive(archive, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=64)
def _archive(path: str, _changed: int, _size: int) -> _Archive:
    try:
        return _Archive(path)
    except _DAMAGED as error:
        raise ValueError(f"{path} is no readable zip archive ({error})") from error
