"""How a job of several processes ends."""

from argparse import Namespace
from functools import partial

import pytest
import torch.multiprocessing as mp
from faults import die
from torch.multiprocessing import ProcessExitedException

from mpcl.engine import launch


def die_as_rank_one(args: Namespace) -> None:
    die(rank=1)


def test_a_killed_rank_is_named_with_its_signal(capfd, monkeypatch):
    # Forked, they import nothing anew.
    forked = partial(mp.start_processes, start_method="fork")
    monkeypatch.setattr(mp, "start_processes", forked)
    args = Namespace(num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto")
    with pytest.raises(SystemExit) as end:
        launch.launch_job(die_as_rank_one, args, device="cpu")
    assert end.value.code == 128 + 9
    assert "Rank 1 (process " in (said := capfd.readouterr().err)
    assert "was ended by SIGKILL" in said and "--resume" in said


def test_the_rank_of_a_killed_process_counts_the_machines_before_its_own(monkeypatch, capsys):
    def ends(*_, **__):
        raise ProcessExitedException("", 1, 4711, -9, "SIGKILL")  # the second on this machine

    monkeypatch.setattr(launch, "launch", ends)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # which the job sets
    args = Namespace(num_gpus=4, num_machines=3, machine_rank=2, dist_url="tcp://node0:29500")
    with pytest.raises(SystemExit) as end:
        launch.launch_job(lambda _: None, args, device="cpu")
    assert end.value.code == 128 + 9
    assert "Rank 9 (process 4711) was ended by SIGKILL" in capsys.readouterr().err
