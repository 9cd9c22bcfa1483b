import numpy as np
import torch
from detectron2.modeling import build_model

from mpcl.pictures import CAPTION_HEIGHT, colorize, comparison


def test_colorize_gives_each_class_its_colour_and_ignored_pixels_black():
    colors = [(10, 20, 30), (40, 50, 60)]
    expected = np.array([[[40, 50, 60], [10, 20, 30], [0, 0, 0]]], np.uint8)
    label = np.array([[1, 0, 255]])
    assert np.array_equal(colorize(label, colors), expected)
    assert np.array_equal(colorize(torch.tensor(label), colors), expected)


def test_comparison_shows_image_truth_and_every_network(tiny_cfg):
    cfg = tiny_cfg("daformer")
    networks = {"first": build_model(cfg), "second": build_model(cfg).eval()}
    with torch.no_grad():
        for network, favourite in zip(networks.values(), (1, 2)):
            network.sem_seg_head.classifier.weight.zero_()
            network.sem_seg_head.classifier.bias.copy_(torch.eye(4)[favourite])
    picture = np.asarray(comparison(cfg, networks, num_images=2))
    assert picture.shape == (2 * 64 + CAPTION_HEIGHT, 4 * 96, 3)
    colors = [(90, 90, 90), (40, 160, 40), (70, 130, 220), (200, 40, 40)]
    body = picture[CAPTION_HEIGHT:]
    assert (body[:, 192:288] == colors[1]).all() and (body[:, 288:] == colors[2]).all()
    truth = {tuple(c) for c in body[:, 96:192].reshape(-1, 3)}
    assert truth <= {*colors, (0, 0, 0)} and len(truth) > 2
    assert networks["first"].training and not networks["second"].training
