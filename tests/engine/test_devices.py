"""What training, evaluation and prediction do on a GPU is what they do on a CPU, where these tests
run with MPCL_TEST_FULL=1."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import NUM_CLASSES, SMALLEST, draw_scene
from detectron2.data import DatasetCatalog
from faults import Stop
from PIL import Image
from processes import assert_equal_checkpoints, checkpoint, train
from run_fixtures import save_run
from test_guards import kept, not_finite, spoil

import mpcl
from mpcl.engine.evaluate import evaluate_networks
from mpcl.engine.preemption import Preempted
from mpcl.predict.loading import load_networks
from mpcl.prototypes.kmeans import kmeans

DEVICES = [pytest.param("cuda", marks=pytest.mark.gpu)]
DEVICES += ["cpu"] if os.getenv("MPCL_TEST_FULL") else []
QUIET = (*SMALLEST, "VIS_PERIOD", 0, "DATASETS.TEST", (), "SOLVER.CHECKPOINT_PERIOD", 100)
EXACT = ("TEST.AMP", False)


@pytest.fixture(params=DEVICES)
def device(request, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    return request.param


def test_step_in_bfloat16_agrees_with_float32_of_the_cpu(tiny_cfg, device):
    no_chance = ("MODEL.SEM_SEG_HEAD.DROPOUT", 0.0, "MODEL.BACKBONE.DROP_PATH", 0.0)
    no_chance = (*no_chance, "SELF_TRAINING.JITTER_PROBABILITY", 0.0, "SOLVER.MAX_ITER", 1)
    no_chance = (*no_chance, "SELF_TRAINING.BLUR_PROBABILITY", 0.0, *QUIET)
    start = ("PROTOTYPES.INIT.ITER", 0, "PROTOTYPES.INIT.METHOD", "random")
    trainers = [
        train(tiny_cfg("daformer_gauss", *no_chance, *start, *precision), resume=False)
        for precision in ((), ("SOLVER.AMP.ENABLED", True, "MODEL.DEVICE", device))
    ]
    exact, half = (trainer.last_step.outputs["source"] for trainer in trainers)
    assert half.logits.dtype == torch.bfloat16 and half.embeddings.dtype == torch.float32
    assert half.logits.device.type == device
    for found, expected in ((half.logits, exact.logits), (half.embeddings, exact.embeddings)):
        error = (found.float().cpu() - expected).norm() / expected.norm()
        assert error < 0.02
    assert trainers[1].guard.total == 0 and not_finite(kept(trainers[1])) == []
    found = trainers[1].last_step.pixels["context"]["source"].cluster
    assert (found < NUM_CLASSES * 3).any()


def test_step_that_is_not_finite_changes_nothing(tiny_cfg, device):
    cfg = tiny_cfg("daformer_gauss", *QUIET, "SOLVER.MAX_ITER", 2, "MODEL.DEVICE", device)
    before = {}

    def plant(trainer):
        spoil(trainer, {1}, "gradient")
        run_step = trainer.run_step

        def step():
            before[trainer.iter] = kept(trainer)
            run_step()

        trainer.run_step = step

    trainer = train(cfg, before=plant)
    assert trainer.guard.total == 1
    now = kept(trainer)
    parts = ("student.backbone", "student.sem_seg_head", "optimizer.0")
    for name in (name for name in now if name.startswith(parts)):
        assert torch.equal(now[name], before[1][name]), name


def test_kmeans_finds_the_blobs(device):
    centers = torch.randn(2, 4, 1, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(2, 4, 100, 16, generator=torch.Generator().manual_seed(1))
    points = (centers + 0.05 * noise).flatten(1, 2).half()
    expected = points.float().unflatten(1, (4, 100)).mean(2)
    valid = torch.ones(2, 400, dtype=torch.bool, device=device)
    result = kmeans(points.to(device), valid, 4, seed=0)
    nearest = torch.cdist(result.mean.cpu(), expected).argmin(2)
    assert nearest.sort(1).values.tolist() == [[0, 1, 2, 3]] * 2
    for found, order, means in zip(result.mean.cpu(), nearest, expected):
        torch.testing.assert_close(found, means[order], rtol=0, atol=1e-4)
    again = kmeans(points.to(device), valid, 4, seed=0)
    assert all(torch.equal(*pair) for pair in zip(result, again))


@pytest.fixture
def weights(tiny_cfg) -> str:
    return str(save_run(tiny_cfg("hrda_gauss", *SMALLEST)) / "model_final.pth")


def test_evaluation_counts_what_the_cpu_predicts(tiny_cfg, tiny_world, weights, device):
    cfg = tiny_cfg("hrda_gauss", *SMALLEST, *EXACT, "MODEL.WEIGHTS", weights)
    evaluate_networks(
        load_networks(
            tiny_cfg(
                "hrda_gauss", *SMALLEST, *EXACT, "MODEL.WEIGHTS", weights, "MODEL.DEVICE", device
            )
        )
    )
    for role in ("teacher", "student"):
        predictor = mpcl.Predictor(cfg, student=role == "student")
        expected = np.zeros((NUM_CLASSES, NUM_CLASSES), np.int64)
        for record in DatasetCatalog.get(tiny_world["val"]):
            truth = np.asarray(Image.open(record["sem_seg_file_name"]))
            known = truth < NUM_CLASSES
            np.add.at(expected, (truth[known], predictor.labels(record["file_name"]).ids[known]), 1)
        folder = Path(cfg.OUTPUT_DIR, "inference", tiny_world["val"])
        found = json.loads((folder / f"confusion_{role}.json").read_text())["matrix"]
        assert np.abs(found - expected).sum() <= 2e-3 * expected.sum()


def test_predictor_answers_as_on_the_cpu(weights, device):
    image = draw_scene(np.random.default_rng(0), "target", (50, 130))[0]
    own, other = (
        mpcl.Predictor(weights, opts=["MODEL.DEVICE", name, *EXACT]) for name in (device, "cpu")
    )
    found, expected = (predictor(image)["sem_seg"] for predictor in (own, other))
    assert found.device.type == device
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3)
    half = mpcl.Predictor(weights, opts=["MODEL.DEVICE", device])(image)["sem_seg"].cpu()
    assert half.dtype == torch.float32 and (half - expected).norm() < 0.02 * expected.norm()
    assert own.labels(image, confidence=True).ids.shape == (50, 130)


def test_resumed_run_is_the_undisturbed_one(tiny_cfg, tmp_path, device):
    opts = (*QUIET, "SOLVER.MAX_ITER", 3, "MODEL.DEVICE", device, "SOLVER.DETERMINISTIC", True)
    whole, stopped = (
        tiny_cfg("daformer_gauss", *opts, "OUTPUT_DIR", str(tmp_path / name))
        for name in ("whole", "stopped")
    )
    try:
        train(whole)
        with pytest.raises(Preempted):
            train(stopped, before=Stop((1,)))
        train(stopped)
    finally:  # the key is one of the process
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False
    assert_equal_checkpoints(*(checkpoint(cfg.OUTPUT_DIR) for cfg in (whole, stopped)))
