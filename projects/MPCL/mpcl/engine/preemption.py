"""SIGTERM and SIGINT as a request to stop: a cluster's preemption, or Ctrl-C."""

import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from ..utils.distributed import world_size

EXIT_PREEMPTED = 75
"""Exit status of a run that was asked to stop and has saved (EX_TEMPFAIL: start it again with
``--resume``)."""


class Preempted(SystemExit):
    """The run has stopped as it was asked to, after saving; left alone, the process ends with
    status 75."""

    def __init__(self) -> None:
        super().__init__(EXIT_PREEMPTED)


class StopSignals:
    """Turns SIGTERM and SIGINT into a flag; one that comes seconds later ends the process as usual.

    One request often arrives several times: from the terminal or the cluster, and from the parent
    process.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGINT)
    SAME_REQUEST = 3.0  # seconds

    def __init__(self) -> None:
        self.received: float | None = None  # when, by the monotonic clock
        self._previous: dict[signal.Signals, Callable[..., Any] | int | None] = {}
        self._group: dist.ProcessGroup | None = None

    def install(self) -> None:
        """From now on signals are requests. Does nothing outside the main thread, where Python has
        no signals. All ranks must call it."""
        if world_size() > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")  # asking must not wait for the GPU
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._note) for s in self.SIGNALS}

    def restore(self) -> None:
        """Signals are again what they were before :meth:`install`."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _note(self, number: int, _frame: object) -> None:
        if self.received is None:
            self.received = time.monotonic()
        elif time.monotonic() - self.received > self.SAME_REQUEST:
            self.restore()
            os.kill(os.getpid(), number)

    def requested(self) -> bool:
        """Whether any rank has been asked to stop. All ranks must call it in each iteration.

        The question goes over the hosts, not the devices. A rank that has died is noticed here,
        too: the others get an error instead of waiting for it.
        """
        if world_size() == 1:
            return self.received is not None
        asked = torch.tensor(float(self.received is not None))
        dist.all_reduce(asked, group=self._group)
        return bool(asked > 0)
