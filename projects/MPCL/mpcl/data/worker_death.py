"""Why a loader worker died, in words: PyTorch knows no more than that one "exited unexpectedly"."""

import signal
from collections.abc import Iterable

_CAUSES = {
    signal.SIGKILL: "the kernel does this when memory runs out (dmesg tells); lower "
    "DATALOADER.NUM_WORKERS, or give the job more memory",
    signal.SIGBUS: "shared memory is full; lower DATALOADER.NUM_WORKERS, or give /dev/shm more "
    "room (docker run --shm-size=8g)",
    signal.SIGSEGV: "a decoder crashed on a file; tools/check_data.py finds it, or a run with "
    "DATALOADER.NUM_WORKERS 0",
    signal.SIGTERM: "something outside ended it, as clusters do before their time limit",
}


def explain_death(exit_codes: Iterable[int | None]) -> str:
    """A sentence on each worker that has ended.

    Args:
        exit_codes: of all workers, as multiprocessing gives them: None while one runs, -N if signal
            N ended it.
    """
    sentences = []
    for number, code in enumerate(exit_codes):
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            cause = _CAUSES.get(signal.Signals(-code), "see the messages above")
            sentences.append(f"loader worker {number} was killed by {name}: {cause}")
        elif code is not None:
            sentences.append(
                f"loader worker {number} ended with status {code}: its own messages stand above"
            )
    return "; ".join(sentences) or "a loader worker hangs or was lost: see the messages above"
