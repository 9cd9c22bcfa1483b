"""One function over many files, in several processes, with a progress bar."""

import multiprocessing
from collections.abc import Callable, Sequence
from typing import TypeVar

import cv2
from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int, description: str
) -> list[Result]:
    """``[function(item) for item in items]``, in this order, by ``num_workers`` processes.

    Args:
        function: a module-level function (or ``functools.partial`` of one), so that it can be sent
            to a process.
        items: what to work on; each should take milliseconds or more.
        num_workers: processes; 0 works in the calling process.
        description: shown in front of the progress bar, which goes to standard error.

    Raises:
        ValueError: ``num_workers`` is negative.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers expects 0 or more processes, got {num_workers}")
    progress = {"total": len(items), "desc": description, "unit": "file", "smoothing": 0.05}
    num_workers = min(num_workers, len(items))
    if num_workers == 0:
        return list(tqdm(map(function, items), **progress))
    chunk = max(1, min(32, len(items) // (4 * num_workers)))
    # One thread a process: OpenCV's own threads would fight over the cores, and may hang after a
    # fork.
    with multiprocessing.Pool(num_workers, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        return list(tqdm(pool.imap(function, items, chunksize=chunk), **progress))
