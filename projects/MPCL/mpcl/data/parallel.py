"""One function over many files, side by side, with a progress bar."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int, description: str
) -> list[Result]:
    """``[function(item) for item in items]``, in this order, by ``num_workers`` threads.

    Threads, not processes: Pillow and OpenCV decode, resize and encode without Python's lock, and
    forking a process that runs threads of its own (OpenCV, CUDA, a progress bar) may hang.
    The first exception ends the work; what has not begun by then is dropped.

    Args:
        function: safe to run in several threads at once.
        items: what to work on.
        num_workers: threads; 0 works in the calling one.
        description: shown in front of the progress bar, which goes to standard error.

    Raises:
        ValueError: ``num_workers`` is negative.
    """
    if num_workers < 0:
        raise ValueError(f"num_workers expects 0 or more threads, got {num_workers}")
    progress = {"total": len(items), "desc": description, "unit": "file", "smoothing": 0.05}
    if num_workers == 0:
        return list(tqdm(map(function, items), **progress))
    executor = ThreadPoolExecutor(num_workers)
    try:
        return list(tqdm(executor.map(function, items), **progress))
    finally:
        executor.shutdown(cancel_futures=True)
