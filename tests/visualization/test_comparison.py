import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from mpcl.visualization.canvas import CAPTION_HEIGHT, GAP
from mpcl.visualization.comparison import comparison

COLORS = [(90, 90, 90), (40, 160, 40), (70, 130, 220), (200, 40, 40)]  # of the tiny world


@pytest.fixture
def networks(tiny_cfg):
    """Two networks that say "hedge" and "sky" of every pixel; the first in training mode."""
    cfg = tiny_cfg("daformer")
    found = {"first": build_model(cfg), "second": build_model(cfg).eval()}
    with torch.no_grad():
        for network, favourite in zip(found.values(), (1, 2)):
            network.sem_seg_head.classifier.weight.zero_()
            network.sem_seg_head.classifier.bias.copy_(torch.eye(4)[favourite])
    return cfg, found


def cell(picture: np.ndarray, row: int, column: int, width: int = 96, height: int = 64):
    top, left = CAPTION_HEIGHT + row * (height + GAP), column * (width + GAP)
    return picture[top : top + height, left : left + width]


def test_comparison_shows_image_truth_and_every_network(networks):
    cfg, by_name = networks
    picture = np.asarray(comparison(cfg, by_name, number=2))
    assert picture.shape[1] == 4 * 96 + 3 * GAP
    assert (cell(picture, 1, 2) == COLORS[1]).all() and (cell(picture, 1, 3) == COLORS[2]).all()
    truth = {tuple(c) for c in cell(picture, 0, 1).reshape(-1, 3)}
    assert truth <= {*COLORS, (0, 0, 0)} and len(truth) > 2
    assert by_name["first"].training and not by_name["second"].training


def test_errors_are_red_exactly_where_the_prediction_differs_from_the_truth(networks):
    cfg, by_name = networks
    picture = np.asarray(comparison(cfg, by_name, number=1, errors=True))
    truth = cell(picture, 0, 1)
    for column, favourite in ((2, 1), (3, 2)):
        red = (cell(picture, 1, column) == (214, 39, 40)).all(-1)
        ignored = (truth == 0).all(-1)
        assert np.array_equal(red, (truth != COLORS[favourite]).any(-1) & ~ignored)
        assert (cell(picture, 1, column)[ignored] == 0).all()


def test_large_images_are_shown_small(networks):
    cfg, by_name = networks
    picture = np.asarray(comparison(cfg, by_name, number=1, width=48))
    assert picture.shape[1] == 4 * 48 + 3 * GAP
    assert (cell(picture, 0, 2, 48, 32) == COLORS[1]).all()


def test_without_a_test_set_the_key_is_named(tiny_cfg):
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty"):
        comparison(tiny_cfg("daformer", "DATASETS.TEST", ()), {})
