"""Processes that are killed or die, at any moment: the run goes on and ends in the same weights."""

import gc
import json
import multiprocessing
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import train_net
from conftest import SMALLEST
from detectron2.utils import comm
from faults import Fail, KillWhileSaving, Ready, Signal, WriteDown, random_moments
from processes import (
    FORKS,
    Register,
    assert_equal_checkpoints,
    checkpoint,
    free_port,
    metrics,
    run,
    start,
    statuses,
    train,
)
from torch.distributed.launcher.api import elastic_launch
from torch.distributed.run import config_from_args, get_args_parser

from mpcl.checkpoint.training import TrainingCheckpointer
from mpcl.engine import AdaptationTrainer

EVERY_ITERATION = ("SOLVER.CHECKPOINT_PERIOD", 1, "SOLVER.CHECKPOINT_KEEP", 2, "VIS_PERIOD", 0)


def test_run_killed_at_any_moment_ends_in_the_same_weights(tiny_cfg, tiny_world, tmp_path):
    others = 7 if os.getenv("MPCL_TEST_FULL") else 1  # than the stages of saving
    last = 10 + 2 * others
    opts = (*EVERY_ITERATION, *SMALLEST, "SOLVER.MAX_ITER", last, "LOG_PERIOD", 4, "OUTPUT_DIR")
    undisturbed, killed = (
        tiny_cfg("daformer_centroid", *opts, str(tmp_path / name))
        for name in ("undisturbed", "killed")
    )
    (reference,) = start(undisturbed, tiny_world)
    moments, kills = random_moments(seed=0, others=others), 0
    for number, (stage, iterations, seconds) in enumerate(moments):
        if stage == "any":
            ready = tmp_path / f"ready_{number}"
            ranks = start(killed, tiny_world, before=Ready(ready, iterations))
            while not ready.exists() and ranks[0].is_alive():
                time.sleep(0.01)
            time.sleep(seconds)
            ranks[0].kill()
            kills += statuses(ranks) == [-signal.SIGKILL]
        else:
            kills += run(killed, tiny_world, before=KillWhileSaving(stage)) == [-signal.SIGKILL]
        found = TrainingCheckpointer(None, killed.OUTPUT_DIR).get_checkpoint_file()
        assert found or number == 0 or "write" in stage or "replace" in stage
    assert kills == len(moments)
    assert run(killed, tiny_world) == [0]
    assert statuses([reference]) == [0]
    assert_equal_checkpoints(checkpoint(undisturbed.OUTPUT_DIR), checkpoint(killed.OUTPUT_DIR))
    assert max(metrics(killed.OUTPUT_DIR)) == last  # whole lines, one an iteration at most


def test_rank_that_is_killed_ends_the_other_one_soon(tiny_cfg, tiny_world):
    ranks = ("SOLVER.MAX_ITER", 1000)
    cfg = tiny_cfg("source_only", *SMALLEST, *ranks, "VIS_PERIOD", 0)
    fault = Signal(signal.SIGKILL, iteration=2, rank=1)
    survivor, died = start(cfg, tiny_world, world_size=2, before=fault)
    assert statuses([died]) == [-signal.SIGKILL]
    assert statuses([survivor], timeout=20) == [1]


WITH_A_WORKER = (*SMALLEST, "DATALOADER.NUM_WORKERS", 1, "SOLVER.MAX_ITER", 3, "VIS_PERIOD", 0)
WITH_A_WORKER = (*WITH_A_WORKER, "DATASETS.TEST", ())
ENDS = {
    "normal": None,
    "exception": Fail(2, rank=1),
    "SIGTERM": Signal(signal.SIGTERM, 2),
    "SIGKILL": Signal(signal.SIGKILL, 2, rank=1),
}


@pytest.mark.parametrize("end", ENDS)
def test_no_process_and_no_shared_memory_outlives_a_run(tiny_cfg, tiny_world, tmp_path, end):
    cfg = tiny_cfg("source_only", *WITH_A_WORKER)
    statuses(start(cfg, tiny_world, world_size=2, before=WriteDown(tmp_path, 2, ENDS[end])))
    pids = [pid for rank in range(2) for pid in (tmp_path / f"rank{rank}.txt").read_text().split()]
    assert len(pids) >= 4  # each rank and its worker
    deadline = time.monotonic() + 20  # workers look every five seconds whether their rank is there
    while running := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, running
        time.sleep(0.05)
    # Named as torch and OpenMP do; semaphores have no name from their birth on.
    left = [file.name for file in Path("/dev/shm").iterdir()]
    assert not [name for name in left if set(pids) & set(name.split("_"))]


def is_running(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"  # ended, and nobody has asked for its status


def train_and_count(register, cfg, ends, file: Path) -> None:
    """Trains to each of the ends in this one process, and writes down what it then holds."""
    multiprocessing.set_start_method("fork", force=True)
    register()
    counts = []
    for end in (*ends, *ends):
        with suppress(RuntimeError, SystemExit):
            train(cfg, resume=False, before=end)
        gc.collect()
        counts.append([len(os.listdir("/proc/self/fd")), len(multiprocessing.active_children())])
    file.write_text(json.dumps(counts))


def test_a_process_that_trains_twice_holds_no_more_files_and_no_workers(
    tiny_cfg, tiny_world, tmp_path
):
    cfg = tiny_cfg("source_only", *WITH_A_WORKER)
    ends = [ENDS["normal"], Fail(2), ENDS["SIGTERM"]]
    words = (Register(tiny_world), cfg, ends, tmp_path / "counts.json")
    process = FORKS.Process(target=train_and_count, args=words)
    process.start()
    assert statuses([process]) == [0]
    counts = json.loads((tmp_path / "counts.json").read_text())
    assert [workers for _, workers in counts] == [0] * 6
    first, again = counts[:3], counts[3:]
    assert max(files for files, _ in again) <= max(files for files, _ in first), counts


def torchrun(words, folder: Path, *args) -> None:
    """``torchrun WORDS``, except that its workers are forked: they import nothing anew."""
    os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as on two machines
    config, *_ = config_from_args(get_args_parser().parse_args([*words, "dies_once"]))
    config.start_method = "fork"
    output = os.open(folder / "output.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    elastic_launch(config, dies_once)(folder, *args)


def dies_once(folder: Path, register: Register, rank: int) -> None:
    """train_net.py, without --resume, in which a rank is killed the first time."""
    register()
    torch.set_num_threads(1)
    run_step = AdaptationTrainer.run_step

    def step(self) -> None:
        if self.iter == 2 and comm.get_rank() == rank and not (folder / "died").exists():
            (folder / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        run_step(self)

    AdaptationTrainer.run_step = step
    train_net.cli(["--config-file", str(folder / "config.yaml")])


# MPCL_TEST_FULL=1: as on two machines, with a torchrun each, which meet at an address.
@pytest.mark.parametrize("machines", [1, 2] if os.getenv("MPCL_TEST_FULL") else [1])
def test_torchrun_restarts_a_job_that_died_and_it_ends_in_the_same_weights(
    tiny_cfg, tiny_world, tmp_path, machines
):
    opts = (*EVERY_ITERATION, *SMALLEST, "SOLVER.MAX_ITER", 3, "DATASETS.TEST", (), "OUTPUT_DIR")
    undisturbed = tiny_cfg("source_only", *opts, str(tmp_path / "undisturbed"))
    restarted = tiny_cfg("source_only", *opts, str(tmp_path / "restarted"))
    (tmp_path / "config.yaml").write_text(restarted.dump())
    words = ["--nnodes", str(machines), "--nproc-per-node", str(2 // machines)]
    words += ["--max-restarts", "2", "--rdzv-backend", "c10d", "--rdzv-id", "mpcl"]
    words += ["--rdzv-endpoint", f"localhost:{free_port()}"]
    args = (words, tmp_path, Register(tiny_world), 1)
    jobs = [FORKS.Process(target=torchrun, args=args) for _ in range(machines)]
    for job in jobs:
        job.start()
    assert run(undisturbed, tiny_world, world_size=2) == [0, 0]
    assert statuses(jobs) == [0] * machines, (tmp_path / "output.txt").read_text()
    log = (tmp_path / "restarted" / "log.txt").read_text()
    assert (tmp_path / "died").exists() and "Starting training from iteration 2" in log
    assert_equal_checkpoints(checkpoint(undisturbed.OUTPUT_DIR), checkpoint(restarted.OUTPUT_DIR))
