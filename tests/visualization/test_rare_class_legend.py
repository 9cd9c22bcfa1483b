"""The legend of the figure of rare classes."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from mpcl.visualization.rare_classes import Frequencies, rare_class_figure


@pytest.mark.parametrize("images", [1, 1000])
def test_the_legend_covers_neither_the_axis_nor_its_label(tiny_cfg, images):
    share = np.array([0.6, 0.2, 0.15, 0.05])
    found = Frequencies(pixels=share, asked=share, shown=share, images=np.full(4, images))
    figure = rare_class_figure(tiny_cfg("daformer"), found)
    FigureCanvasAgg(figure).draw()
    (axes,), (legend,) = figure.axes, figure.legends
    boxes = [axes.xaxis.label.get_window_extent(), axes.get_window_extent()]
    assert not any(legend.get_window_extent().overlaps(box) for box in boxes)
