"""Replicated by construction: what lives outside DDP's parameters is equal on all ranks."""

import os
import socket
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from mpcl.engine import AdaptationTrainer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def train_rank(rank: int, port: int, cfg, register, folder: str) -> None:
    register()
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    comm.create_local_process_group(2)
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    state = {"student": trainer.student.state_dict(), "teacher": trainer.teacher.state_dict()}
    torch.save(state, Path(folder) / f"rank{rank}.pth")
    dist.barrier()  # torch 2.4 hangs in the next call where a rank is still at work
    dist.destroy_process_group()


@pytest.mark.parametrize("method", ["mic_gauss"])
def test_ranks_end_with_equal_students_teachers_and_prototypes(
    tiny_cfg, tiny_world, tmp_path, method
):
    # SyncBatchNorm needs GPUs; detectron2's own synchronised batch norm runs anywhere.
    cfg = tiny_cfg(method, "MODEL.SEM_SEG_HEAD.NORM", "naiveSyncBN")
    port = free_port()
    mp.spawn(train_rank, (port, cfg, _Register(tiny_world), str(tmp_path)), nprocs=2)
    first, second = (torch.load(tmp_path / f"rank{rank}.pth") for rank in range(2))
    for network in ("student", "teacher"):
        different = [
            name
            for name, value in first[network].items()
            if not torch.equal(value, second[network][name])
        ]
        assert not different
    assert first["student"]["prototype_head.prototypes.started"].all()


class _Register:
    """Registers the session's tiny data sets in a spawned process."""

    def __init__(self, names: dict[str, str]) -> None:
        from detectron2.data import DatasetCatalog, MetadataCatalog

        self.sets = {
            name: (DatasetCatalog.get(name), MetadataCatalog.get(name).as_dict())
            for name in names.values()
        }

    def __call__(self) -> None:
        from detectron2.data import DatasetCatalog, MetadataCatalog

        for name, (records, meta) in self.sets.items():
            DatasetCatalog.register(name, lambda records=records: [dict(r) for r in records])
            meta.pop("name", None)
            MetadataCatalog.get(name).set(**meta)
