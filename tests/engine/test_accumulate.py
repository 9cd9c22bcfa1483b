"""A batch in parts is the batch, where nothing in the network looks at several images."""

import pytest
import torch

from mpcl.engine import AdaptationTrainer
from mpcl.prototypes.centroid import CentroidPrototypes

# Without batch norm, dropout and stochastic depth each image is alone.
ALONE = ["MODEL.SEM_SEG_HEAD.NORM", "LN", "MODEL.SEM_SEG_HEAD.DROPOUT", "0.0"]
ALONE += ["MODEL.MIT.DROP_PATH", "0.0", "SOLVER.MAX_ITER", "1"]


def train(cfg) -> AdaptationTrainer:
    torch.manual_seed(0)  # of the first weights
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


@pytest.mark.parametrize("method", ["source_only", "mic_daformer"])
def test_two_parts_add_up_to_the_gradients_of_the_whole_batch(tiny_cfg, method):
    whole = train(tiny_cfg(method, *ALONE)).student
    parts = train(tiny_cfg(method, *ALONE, "SOLVER.ACCUMULATE", "2")).student
    for mine, expected in zip(parts.parameters(), whole.parameters()):
        scale = expected.grad.abs().max()
        torch.testing.assert_close(mine.grad / scale, expected.grad / scale, rtol=0, atol=1e-5)


def test_prototypes_are_updated_once_a_step_with_the_pixels_of_all_parts(tiny_cfg, monkeypatch):
    updates = []
    move = CentroidPrototypes.update_

    def update_(self, embeddings, cluster):
        updates.append(len(embeddings))
        move(self, embeddings, cluster)

    monkeypatch.setattr(CentroidPrototypes, "update_", update_)
    whole = tiny_cfg("hrda_centroid")
    train(whole)
    expected, updates[:] = list(updates), []
    train(tiny_cfg("hrda_centroid", "SOLVER.ACCUMULATE", "2"))
    assert expected and updates == expected
