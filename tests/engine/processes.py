"""Training in processes of its own, to be killed, stopped and counted.

Processes are forked from a server that has imported everything and run nothing: one starts in a
fraction of a second, where a fresh interpreter takes several.
"""

import json
import multiprocessing
import os
import socket
from contextlib import suppress
from pathlib import Path

import tiny_encoder  # noqa: F401  (MODEL.MIT.VARIANT tiny)
import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.utils._pytree import keystr, tree_flatten_with_path

from mpcl.engine import AdaptationTrainer
from mpcl.engine.preemption import Preempted

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["mpcl.engine", "mpcl.engine.launch", "torch.utils.tensorboard"])


# Wall-clock times and memory, which no two runs share.
MEASURED = ("time", "data_time", "rank_data_time", "eta_seconds", "[metric] max_mem_MiB")


class Register:
    """Registers the session's tiny data sets in another process."""

    def __init__(self, names: dict[str, str]) -> None:
        self.sets = {
            name: (DatasetCatalog.get(name), MetadataCatalog.get(name).as_dict())
            for name in names.values()
        }

    def __call__(self) -> None:
        for name, (records, meta) in self.sets.items():
            if name not in DatasetCatalog:
                DatasetCatalog.register(name, lambda records=records: [dict(r) for r in records])
                meta.pop("name", None)
                MetadataCatalog.get(name).set(**meta)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train(cfg, resume=True, before=None):
    """Trains to the end, in this process; ``before(trainer)`` may plant a fault."""
    seed_all_rng(cfg.SEED + comm.get_rank())  # as detectron2's default_setup does
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume)
    if before is not None:
        before(trainer)
    trainer.train()
    return trainer


def join(rank: int, world_size: int, port: int) -> None:
    """Makes this process one of ``world_size`` ranks."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    comm.create_local_process_group(world_size)


def _train_rank(rank, world_size, port, register, runs) -> None:
    # A child of the server would start its own children, the loader's workers, by a server, too.
    multiprocessing.set_start_method("fork", force=True)
    register()
    torch.set_num_threads(1)
    if world_size > 1:
        join(rank, world_size, port)
    for cfg, before in runs[:-1]:
        with suppress(Preempted):
            _train_and_keep(rank, cfg, before)
    _train_and_keep(rank, *runs[-1])
    if world_size > 1:
        dist.barrier()  # torch 2.4 hangs in the next call where a rank is still at work
        dist.destroy_process_group()


def _train_and_keep(rank: int, cfg, before) -> None:
    trainer = train(cfg, before=before)
    if comm.get_world_size() > 1:
        networks = {"student": trainer.student, "teacher": trainer.teacher}
        state = {role: network.state_dict() for role, network in networks.items() if network}
        torch.save(state, Path(cfg.OUTPUT_DIR) / f"rank{rank}.pth")


def start(cfg, world, *, world_size=1, before=None):
    """Starts the ranks of a run that goes on from its newest checkpoint, if there is one."""
    return start_all([(cfg, before)], world, world_size)


def start_all(runs, world, world_size=1):
    """Starts the ranks of several runs ``(cfg, before)``, one after the other in one process each;
    a run but the last may end in a stop."""
    port, register = free_port(), Register(world)
    ranks = [
        FORKS.Process(
            target=_train_rank, args=(rank, world_size, port, register, runs), daemon=False
        )
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    return ranks


def statuses(ranks, timeout: float = 120) -> list[int]:
    """Exit statuses once all have ended; fails if one does not in time."""
    for process in ranks:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            raise AssertionError(f"process {process.pid} was still alive after {timeout} s")
    return [process.exitcode for process in ranks]


def run(cfg, world, **options) -> list[int]:
    return statuses(start(cfg, world, **options))


def checkpoint(folder, name: str = "model_final.pth") -> dict[str, object]:
    """Everything in a checkpoint, flat, by its keys."""
    leaves = tree_flatten_with_path(torch.load(Path(folder) / name, weights_only=True))[0]
    return {keystr(path): leaf for path, leaf in leaves}


def assert_equal_checkpoints(left: dict, right: dict) -> None:
    """To the last bit: tensors, counters, schedule."""
    assert left.keys() == right.keys()
    different = [
        name
        for name, value in left.items()
        if not (
            torch.equal(value, right[name])
            if isinstance(value, torch.Tensor)
            else value == right[name]
        )
    ]
    assert not different


def metrics(folder) -> dict[int, dict[str, float]]:
    """The lines of metrics.json by iteration, without measured values; fails where an iteration
    has two."""
    lines = (Path(folder) / "metrics.json").read_text().splitlines()
    rows = [
        {k: v for k, v in json.loads(line).items() if k not in MEASURED and v == v}
        for line in lines
    ]
    found = {row.pop("iteration"): row for row in rows}
    assert len(found) == len(rows), "an iteration has two lines"
    return found
