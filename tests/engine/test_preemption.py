"""SIGTERM and SIGINT, as a cluster or a terminal sends them."""

import os
import signal
import time
from pathlib import Path

import pytest
from conftest import SMALLEST
from faults import Ready, Signal, SlowEvaluation
from processes import FORKS, run, start, statuses

from mpcl.engine.preemption import EXIT_PREEMPTED, StopSignals

SHORT = ("SOLVER.CHECKPOINT_PERIOD", 100, "VIS_PERIOD", 0, *SMALLEST)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_iteration_saves_and_exits_with_its_status(tiny_cfg, tiny_world, number):
    cfg = tiny_cfg("source_only", *SHORT)
    assert run(cfg, tiny_world, before=Signal(number, 2)) == [EXIT_PREEMPTED]
    assert Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text() == "model_0000002.pth"


def test_signal_to_the_loaders_workers_too_does_not_spoil_the_stop(tiny_cfg, tiny_world, tmp_path):
    # Schedulers signal every process of a job, and a terminal its whole group.
    cfg = tiny_cfg("source_only", *SHORT, "DATALOADER.NUM_WORKERS", 2, "SOLVER.MAX_ITER", 500)
    ranks = start(cfg, tiny_world, before=Ready(tmp_path / "ready", 1))
    wait_for(tmp_path / "ready")
    for pid in [*children(ranks[0].pid), ranks[0].pid]:
        os.kill(pid, signal.SIGTERM)
    assert statuses(ranks) == [EXIT_PREEMPTED]


def test_signal_to_all_processes_in_an_evaluation_is_obeyed_after_it(
    tiny_cfg, tiny_world, tmp_path
):
    opts = ["DATALOADER.NUM_WORKERS", 1, "SOLVER.MAX_ITER", 500, "TEST.EVAL_PERIOD", 2]
    cfg = tiny_cfg("source_only", *SHORT, *opts)
    ranks = start(cfg, tiny_world, before=SlowEvaluation(tmp_path / "evaluating"))
    wait_for(tmp_path / "evaluating")
    for pid in [*children(ranks[0].pid), ranks[0].pid]:  # of both loaders
        os.kill(pid, signal.SIGTERM)
    assert statuses(ranks) == [EXIT_PREEMPTED]
    assert Path(cfg.OUTPUT_DIR, "last_checkpoint").read_text() == "model_0000002.pth"


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert found
    return [int(child) for child in found]


def ask(signals: StopSignals, pause: float) -> None:
    signals.SAME_REQUEST = 0.2
    signals.install()
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(pause)
    raise SystemExit(0 if signals.requested() else 1)


@pytest.mark.parametrize(("pause", "status"), [(0.0, 0), (0.4, -signal.SIGTERM)])
def test_signal_that_comes_twice_is_one_request_but_later_it_is_an_order(pause, status):
    process = FORKS.Process(target=ask, args=(StopSignals(), pause))
    process.start()
    assert statuses([process]) == [status]
