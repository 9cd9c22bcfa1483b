"""Large images by tiles: the same as without, in less memory."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import SMALLEST, draw_scene
from run_fixtures import save_run

import mpcl
from mpcl.modeling.inference import sliding_window
from mpcl.predict.tiling import at, tiles


def windows_of(size: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """Where the sliding window puts its windows along one direction, as it says itself."""
    seen = []

    def spy(windows: torch.Tensor) -> torch.Tensor:
        seen.extend((int(w[0, 0, 0]), int(w[0, 0, -1]) + 1) for w in windows)
        return windows

    image = torch.arange(size, dtype=torch.float32).expand(1, 1, 1, size)
    sliding_window(spy, image, crop=(1, crop), stride=(1, stride))
    return seen


@pytest.mark.parametrize("margin", [0, 1])
@pytest.mark.parametrize("crop, stride", [(8, 4), (8, 8), (8, 3), (7, 6)])
def test_a_tile_has_all_windows_of_what_is_kept_of_it(crop, stride, margin):
    for size in (*range(1, 80, 3), 200):
        for side in (2 * (crop + margin) + stride, 3 * crop + 5, 5 * crop):
            whole, covered = windows_of(size, crop, stride), []
            for tile, kept in tiles(size, side, crop, stride, margin):
                length = tile.stop - tile.start
                assert length <= side
                own = {
                    (a + tile.start, b + tile.start) for a, b in windows_of(length, crop, stride)
                }
                assert own <= set(whole)
                covered += range(kept.start, kept.stop)
                for pixel in range(max(kept.start - margin, 0), min(kept.stop + margin, size)):
                    assert {w for w in whole if w[0] <= pixel < w[1]} <= own
            assert covered == list(range(size))


@pytest.mark.parametrize("seen, own", [((7, 9), (31, 20)), ((16, 16), (5, 40)), ((6, 6), (6, 6))])
def test_places_are_those_of_torchs_bilinear_resize(seen, own):
    logits = torch.randn(3, *seen)
    rows, columns = (
        (torch.arange(n, dtype=torch.float64) + 0.5) * m / n - 0.5 for m, n in zip(seen, own)
    )
    expected = F.interpolate(logits[None], size=own, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(at(logits, rows, columns), expected)


SLIDE = ("TEST.INFERENCE", "slide", "TEST.SLIDE.CROP", (64, 64), "TEST.SLIDE.STRIDE", (32, 32))


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return draw_scene(np.random.default_rng(0), "target", (250, 330))[0]


@pytest.mark.parametrize(
    ("method", "target_size"),
    [
        *(("daformer", size) for size in ((0, 0), (280, 230), (96, 64), (825, 625))),
        ("hrda", (280, 230)),
    ],
)
def test_tiles_give_what_the_whole_gives_everywhere(tiny_cfg, image, method, target_size):
    cfg = tiny_cfg(method, *SMALLEST, *SLIDE, "INPUT.TARGET_SIZE", target_size)
    run = save_run(cfg)
    whole = mpcl.Predictor(run).labels(image, confidence=True)
    predictor = mpcl.Predictor(run, tile=150)
    assert predictor.is_large((250, 330))
    seen, predict = [], predictor.model.predict_once

    def spy(records, inference=None):
        seen.extend(tuple(record["image"].shape[1:]) for record in records)
        return predict(records, inference)

    predictor.model.predict_once = spy
    tiled = predictor.labels(image, confidence=True)
    assert len(seen) == {(0, 0): 6, (280, 230): 4, (96, 64): 1, (825, 625): 48}[target_size]
    assert max(max(size) for size in seen) <= 3 * 64 + 2
    np.testing.assert_allclose(tiled.confidence, whole.confidence, atol=1e-4)
    assert (tiled.ids == whole.ids).mean() > 0.9999


def test_large_images_may_stand_beside_others(tiny_cfg, image):
    run = save_run(tiny_cfg("daformer", *SMALLEST, *SLIDE))
    predictor, small = mpcl.Predictor(run, tile=150), image[:50, :60]
    first, large = predictor.labels([small, image])
    assert np.array_equal(large.ids, predictor.labels(image, confidence=True).ids)
    assert (first.ids == mpcl.Predictor(run).labels(small).ids).mean() > 0.999


def test_a_large_image_for_one_forward_is_predicted_by_windows_and_that_is_said(
    tiny_cfg, image, caplog
):
    run = save_run(tiny_cfg("daformer", *SMALLEST, "INPUT.TARGET_SIZE", (0, 0)))
    windows = mpcl.Predictor(run, opts=SLIDE).labels(image).ids
    with caplog.at_level("WARNING"):
        tiled = mpcl.Predictor(run, opts=SLIDE[2:], tile=150).labels(image).ids
    assert "330 x 250 is too large for TEST.INFERENCE whole" in caplog.text
    assert (tiled == windows).mean() > 0.9999


def test_a_tile_of_nothing_and_tiles_of_augmented_images_are_refused(tiny_cfg, image):
    run = save_run(tiny_cfg("daformer", *SMALLEST))
    with pytest.raises(ValueError, match=r"330 x 250 is predicted by tiles.*TEST\.AUG\.ENABLED"):
        mpcl.Predictor(run, opts=("TEST.AUG.ENABLED", True), tile=150).labels(image)
    with pytest.raises(ValueError, match="tile must be positive, got 0"):
        mpcl.Predictor(run, tile=0)


def test_what_the_network_would_see_enlarged_is_large_too(tiny_cfg, image):
    run = save_run(tiny_cfg("daformer", *SMALLEST, *SLIDE, "INPUT.TARGET_SIZE", (330, 250)))
    small = image[:50, :66]  # 3,300 pixels of its own, 82,500 of the network's input
    predictor, seen = mpcl.Predictor(run, tile=200), []
    assert predictor.is_large((50, 66))
    predict = predictor.model.predict_once
    predictor.model.predict_once = lambda records, windows=None: (
        seen.extend(tuple(record["image"].shape[1:]) for record in records)
        or predict(records, windows)
    )
    tiled = predictor.labels(small)
    assert len(seen) > 1 and max(max(size) for size in seen) <= 200
    assert np.mean(tiled.ids == mpcl.Predictor(run).labels(small).ids) > 0.999
