"""Test-time augmentation: what is averaged, and where it is used."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALLEST, draw_scene
from detectron2.data import DatasetCatalog
from run_fixtures import save_run
from sklearn.metrics import jaccard_score

import mpcl
from mpcl.data.labels import read_label
from mpcl.engine.evaluate import evaluate_networks
from mpcl.predict.loading import load_networks


def augmented(sizes, flip, max_size=4000):
    settings = {"ENABLED": True, "MIN_SIZES": sizes, "FLIP": flip, "MAX_SIZE": max_size}
    return [word for key, value in settings.items() for word in (f"TEST.AUG.{key}", value)]


def mean_probability(predictor, image, views, temperature):
    """One view at a time, by the predictor without augmentation."""
    shares = []
    for (height, width), mirrored in views:
        view = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        view = np.ascontiguousarray(view[:, ::-1]) if mirrored else view
        logits = predictor(view)["sem_seg"]
        size = image.shape[:2]
        logits = F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
        share = (logits / temperature).softmax(0).numpy()
        shares.append(share[..., ::-1] if mirrored else share)
    return np.mean(shares, axis=0)


@pytest.mark.parametrize("output", ["classifier", "prototypes"])
def test_probabilities_are_averaged_over_sizes_and_mirror_images(tiny_cfg, output):
    # Shorter side 48 of 60x90: 48x72. Shorter side 80 would be 80x120, its longer side at most 99.
    views = [(size, mirrored) for size in ((48, 72), (66, 99)) for mirrored in (False, True)]
    run = save_run(tiny_cfg("daformer_gauss", *SMALLEST))
    image = draw_scene(np.random.default_rng(1), "target", (60, 90))[0]
    opts = ("TEST.OUTPUT", output)
    plain = mpcl.Predictor(run, opts=(*opts, "INPUT.TARGET_SIZE", (0, 0)), student=True)
    temperature = plain.cfg.PROTOTYPES.TEMPERATURE if output == "prototypes" else 1.0
    expected = mean_probability(plain, image, views, temperature)
    # INPUT.TARGET_SIZE, (96, 64) here, has no say.
    predictor = mpcl.Predictor(run, opts=(*opts, *augmented((48, 80), True, 99)), student=True)
    scores = predictor(image)["sem_seg"]
    torch.testing.assert_close(
        (scores / temperature).softmax(0).numpy(), expected, rtol=1e-4, atol=1e-5
    )
    labels = predictor.labels(image, confidence=True)
    np.testing.assert_array_equal(labels.ids, scores.argmax(0))
    np.testing.assert_allclose(labels.confidence, expected.max(0), atol=1e-4)
    without = mpcl.Predictor(run, opts=opts, student=True).labels(image, confidence=True)
    assert not np.allclose(without.confidence, labels.confidence, atol=1e-3)


def test_the_evaluation_scores_what_the_predictor_gives(tiny_cfg):
    cfg = tiny_cfg("hrda", *SMALLEST, *augmented((40, 64), True))
    run = save_run(cfg)
    predictor = mpcl.Predictor(run)
    records = DatasetCatalog.get("tiny_val")
    ids = np.stack([predictor.labels(record["file_name"]).ids for record in records])
    truth = np.stack([read_label(record["sem_seg_file_name"]) for record in records])
    known = truth != 255
    expected = 100 * jaccard_score(truth[known], ids[known], average="macro", labels=range(4))
    found = evaluate_networks(load_networks(cfg, resume=True))
    assert found["sem_seg"]["mIoU"] == pytest.approx(expected)
    once = tiny_cfg("hrda", *SMALLEST, *augmented((64,), False))  # the images' own size
    without = tiny_cfg("hrda", *SMALLEST)
    same, plain = (
        evaluate_networks(load_networks(c, resume=True))["sem_seg"]["mIoU"] for c in (once, without)
    )
    assert same == pytest.approx(plain, abs=0.02)
