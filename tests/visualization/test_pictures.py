import numpy as np
import pytest
import torch
from PIL import Image

from mpcl.utils.pictures import (
    GAP,
    blend,
    colorize,
    error_map,
    fit,
    grid,
    heat,
    legend,
    with_legend,
    with_scale,
)


def test_error_map_marks_wrong_and_ignored_pixels_only():
    image = np.full((1, 4, 3), 100, np.uint8)
    truth, prediction = np.array([[0, 1, 255, 2]], np.uint8), np.array([[0, 2, 1, 2]], np.uint8)
    picture = error_map(image, truth, prediction)
    assert picture[0, 1].tolist() == [214, 39, 40] and picture[0, 2].tolist() == [0, 0, 0]
    assert picture[0, 0].tolist() == [180] * 3 == picture[0, 3].tolist()  # 0.4 * 100 + 140


def test_error_map_refuses_other_sizes():
    with pytest.raises(ValueError, match="differ"):
        error_map(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 3)), np.zeros((2, 2)))


def test_heat_runs_from_dark_blue_to_yellow_and_clips():
    picture = heat(np.array([[-1.0, 0.0, 1.0, 5.0]]))
    assert (picture[0, 0] == picture[0, 1]).all() and (picture[0, 2] == picture[0, 3]).all()
    assert picture[0, 1, 2] > picture[0, 1, 0] and picture[0, 2, 0] > 200 > picture[0, 2, 2]
    assert np.isfinite(heat(np.ones((1, 1)), 1.0, 1.0)).all()  # all values alike


def test_blend_mixes_by_opacity():
    one, other = np.zeros((1, 1, 3), np.uint8), np.full((1, 1, 3), 200, np.uint8)
    assert [blend(one, other, a)[0, 0, 0] for a in (0.0, 0.25, 1.0)] == [0, 50, 200]


def test_fit_keeps_aspect_ratio_and_never_invents_a_class():
    label = np.tile(np.array([3, 9], np.uint8), (20, 50))
    small = fit(label, 30, nearest=True)
    assert small.shape == (6, 30) and set(np.unique(small)) <= {3, 9}
    assert fit(label, 100) is label


def test_grid_puts_pictures_side_by_side_and_leaves_empty_cells_white():
    red, blue = np.zeros((2, 5, 10, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    picture = np.asarray(grid([[red, blue], [None, red]]))
    assert picture.shape == (10 + GAP, 20 + GAP, 3)
    assert (picture[:5, 10 + GAP :] == (0, 0, 255)).all()
    assert (picture[5 + GAP :, :10] == 255).all() and (picture[5 + GAP :, -10:, 1:] == 0).all()


def test_legend_takes_as_many_lines_as_it_needs_and_shows_each_colour():
    colors = [(10 * i, 0, 200) for i in range(8)]
    names = [f"class number {i}" for i in range(8)]
    picture = np.asarray(with_legend(Image.new("RGB", (300, 20)), names, colors))
    shown = {tuple(c) for c in picture[20:].reshape(-1, 3)}
    assert picture.shape[1] == 300 and set(colors) <= shown


def test_a_legend_of_its_own_is_wide_enough_for_its_longest_name():
    short, long = legend(["road"], [(9, 9, 9)]), legend(["x" * 200], [(9, 9, 9)])
    assert short.width < long.width and (np.asarray(long)[:, -10:] == 255).all()


def test_scale_shows_the_colours_from_one_end_to_the_other():
    picture = np.asarray(with_scale(Image.new("RGB", (300, 20)), "confidence"))
    shown = {tuple(c) for c in picture[20:].reshape(-1, 3)}
    ends = heat(np.array([[0.0, 0.5, 1.0]]))[0]
    assert {tuple(color) for color in ends[[0, 2]]} <= shown and len(shown) > 50


def test_colorize_gives_each_class_its_colour_and_ignored_pixels_black():
    colors = [(10, 20, 30), (40, 50, 60)]
    expected = np.array([[[40, 50, 60], [10, 20, 30], [0, 0, 0]]], np.uint8)
    label = np.array([[1, 0, 255]])
    assert np.array_equal(colorize(label, colors), expected)
    assert np.array_equal(colorize(torch.tensor(label), colors), expected)
