"""Memory of a process that computes on the CPU."""

import ctypes
import sys

# The environment variables MALLOC_* would do the same, but glibc reads them before Python runs: a
# user would have to set them for every command. These are the names of its malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_LARGEST = 2**31 - 1  # mallopt takes an int
_GROWTH = 64 * 2**20  # bytes that the heap grows by


def keep_freed_memory() -> bool:
    """Lets the process keep the memory of freed tensors for the next ones.

    glibc gives every block of more than 32 MiB back at once; the kernel clears each page of the
    next one when it is first touched, which takes longer than many an operation on it. Afterwards
    the process's memory stays at its peak.

    Returns: whether the C library took the settings; elsewhere than on glibc nothing changes.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: _LARGEST, _M_TOP_PAD: _GROWTH}
    taken = [mallopt(name, value) == 1 for name, value in settings.items()]
    return all(taken)
