"""Freed memory stays with the process, and is used again without new pages."""

import platform
import resource

import pytest
import torch
from processes import FORKS, statuses

from mpcl.utils.host_memory import keep_freed_memory


def count_pages(tell) -> None:
    assert keep_freed_memory()

    def use() -> None:
        torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)

    for _ in range(3):  # until the heap has its size
        use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        use()
    tell.send(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc",
    reason="only glibc hands freed memory back; other C libraries are left as they are",
)
def test_large_tensors_reuse_their_memory():
    # In a process of its own: the setting lasts.
    told, tell = FORKS.Pipe(duplex=False)
    process = FORKS.Process(target=count_pages, args=(tell,))
    process.start()
    assert statuses([process]) == [0]
    assert told.recv() < 0.02 * 5 * 64 * 2**20 // resource.getpagesize()
