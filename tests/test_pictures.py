import numpy as np
import torch

from mpcl.utils.colors import colorize


def test_colorize_gives_each_class_its_colour_and_ignored_pixels_black():
    colors = [(10, 20, 30), (40, 50, 60)]
    expected = np.array([[[40, 50, 60], [10, 20, 30], [0, 0, 0]]], np.uint8)
    label = np.array([[1, 0, 255]])
    assert np.array_equal(colorize(label, colors), expected)
    assert np.array_equal(colorize(torch.tensor(label), colors), expected)
