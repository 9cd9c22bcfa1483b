"""Replicated by construction: what lives outside DDP's parameters is equal on all ranks."""

from pathlib import Path

import pytest
import torch
from processes import run


@pytest.mark.parametrize("method", ["mic_gauss"])
def test_ranks_end_with_equal_students_teachers_and_prototypes(tiny_cfg, tiny_world, method):
    # SyncBatchNorm needs GPUs; detectron2's own synchronised batch norm runs anywhere.
    cfg = tiny_cfg(method, "MODEL.SEM_SEG_HEAD.NORM", "naiveSyncBN")
    assert run(cfg, tiny_world, world_size=2) == [0, 0]
    first, second = (torch.load(Path(cfg.OUTPUT_DIR) / f"rank{rank}.pth") for rank in range(2))
    for network in ("student", "teacher"):
        different = [
            name
            for name, value in first[network].items()
            if not torch.equal(value, second[network][name])
        ]
        assert not different
    assert first["student"]["prototype_head.prototypes.started"].all()
