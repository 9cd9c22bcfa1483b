"""Two machines of one process each."""

import os
from functools import partial
from pathlib import Path

import torch
import train_net
from conftest import SMALLEST
from detectron2.engine import launch
from processes import (
    FORKS,
    Register,
    assert_equal_checkpoints,
    checkpoint,
    free_port,
    join,
    metrics,
    start,
    statuses,
)

from mpcl.engine.launch import is_restart


def machine(register: Register, argv: list[str], log: Path) -> None:
    """``python tools/train_net.py ARGV``, except that its processes are forked: they import
    nothing anew."""
    output = os.open(log, os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    register()
    torch.set_num_threads(1)
    start_processes = launch.__globals__["mp"].start_processes
    launch.__globals__["mp"].start_processes = partial(start_processes, start_method="fork")
    train_net.cli(argv)


def start_machines(cfg_files, world, tmp_path, *words):
    url = f"tcp://127.0.0.1:{free_port()}"
    common = ["--num-gpus", "1", "--num-machines", "2", "--dist-url", url, *words]
    machines = []
    for i, file in enumerate(cfg_files):
        argv = ["--config-file", str(file), "--machine-rank", str(i), *common]
        log = tmp_path / f"machine_{i}.txt"
        machines.append(FORKS.Process(target=machine, args=(Register(world), argv, log)))
    for process in machines:
        process.start()
    return machines


def test_two_machines_of_one_process_equal_one_machine_of_two(tiny_cfg, tiny_world, tmp_path):
    opts = (*SMALLEST, "SOLVER.MAX_ITER", 3, "VIS_PERIOD", 0, "DATASETS.TEST", (), "OUTPUT_DIR")
    together = tiny_cfg("source_only", *opts, str(tmp_path / "together"))
    apart = tiny_cfg("source_only", *opts, str(tmp_path / "apart"))
    (tmp_path / "config.yaml").write_text(apart.dump())
    machines = start_machines([tmp_path / "config.yaml"] * 2, tiny_world, tmp_path)
    reference = start(together, tiny_world, world_size=2)
    assert statuses(machines) == [0, 0], (tmp_path / "machine_0.txt").read_text()
    assert statuses(reference) == [0, 0]
    assert_equal_checkpoints(checkpoint(together.OUTPUT_DIR), checkpoint(apart.OUTPUT_DIR))
    assert metrics(together.OUTPUT_DIR) == metrics(apart.OUTPUT_DIR)
    # Not a machine may go on while the other starts anew: its folder is not the shared one.
    own = tiny_cfg("source_only", *opts, str(tmp_path / "own"))
    (tmp_path / "own.yaml").write_text(own.dump())
    files = [tmp_path / "config.yaml", tmp_path / "own.yaml"]
    machines = start_machines(files, tiny_world, tmp_path, "--resume")
    assert statuses(machines) == [2, 2]
    said = (tmp_path / "machine_1.txt").read_text()
    assert "model_final.pth, none" in said and "one folder that all machines share" in said


def ask_whether_restarted(rank: int, port: int) -> None:
    join(rank, 2, port)
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(rank)  # only its machine counts a restart
    raise SystemExit(10 + is_restart())


def test_restart_of_one_machine_is_one_for_all():
    port = free_port()
    ranks = [FORKS.Process(target=ask_whether_restarted, args=(rank, port)) for rank in range(2)]
    for process in ranks:
        process.start()
    assert statuses(ranks) == [11, 11]
