"""One run in a folder at a time."""

import os
import platform
import signal
from pathlib import Path

import pytest
from processes import FORKS, statuses

from mpcl.engine.run_lock import only_run_in


def hold(folder: Path, tell, ask) -> None:
    with only_run_in(folder):
        helper = FORKS.Process(target=ask.recv)  # as a loader worker, which may outlive the run
        helper.start()
        tell.send(os.getpid())
        signal.pause()


def test_a_second_run_is_refused_by_name_until_the_first_is_gone(tmp_path):
    told, tell = FORKS.Pipe(duplex=False)
    ask, answer = FORKS.Pipe(duplex=False)
    first = FORKS.Process(target=hold, args=(tmp_path, tell, ask))
    first.start()
    pid = told.recv()
    message = f"process {pid} on {platform.node()}.*another OUTPUT_DIR"
    with pytest.raises(ValueError, match=message), only_run_in(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    assert statuses([first]) == [-signal.SIGKILL]
    with only_run_in(tmp_path):  # though the helper is still there
        pass
    answer.send(0)
    with only_run_in(tmp_path):
        pass
