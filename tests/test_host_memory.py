"""Freed memory stays with the process, and is used again without new pages."""

import resource
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys, torch
from mpcl.utils.host_memory import keep_freed_memory
if not keep_freed_memory():
    sys.exit(77)
def use():
    torch.empty(64 * 2**20, dtype=torch.uint8).fill_(1)
for _ in range(3):  # until the heap has its size
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_large_tensors_reuse_their_memory():
    # In a process of its own: the setting lasts.
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120
    )
    if run.returncode == 77:
        pytest.skip("the C library is not glibc")
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""  # importing the package gives no warnings
    pages = 5 * 64 * 2**20 // resource.getpagesize()
    assert int(run.stdout) < 0.02 * pages
