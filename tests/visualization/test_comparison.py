import numpy as np
import pytest
import torch
from detectron2.data import Metadata, MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from mpcl.data.sets.classes import classes_of
from mpcl.predict.loading import Networks, load_networks
from mpcl.utils.pictures import CAPTION_HEIGHT, GAP
from mpcl.visualization.activations import activation_figure
from mpcl.visualization.comparison import comparison
from mpcl.visualization.feature_map import feature_figure
from mpcl.visualization.prototype_inspection import inspect
from mpcl.visualization.scenes import predicted_scenes

COLORS = [(90, 90, 90), (40, 160, 40), (70, 130, 220), (200, 40, 40)]  # of the tiny world


def loaded(cfg, network) -> Networks:
    return Networks(cfg, network, None, classes_of(cfg))


@pytest.fixture
def networks(tiny_cfg):
    """Networks of two runs that say "hedge" and "sky" of every pixel; the first is in training
    mode."""
    cfg = tiny_cfg("daformer")
    found = {"first": build_model(cfg), "second": build_model(cfg).eval()}
    with torch.no_grad():
        for network, favourite in zip(found.values(), (1, 2)):
            network.sem_seg_head.classifier.weight.zero_()
            network.sem_seg_head.classifier.bias.copy_(torch.eye(4)[favourite])
    return {name: loaded(cfg, network) for name, network in found.items()}


def cell(picture: np.ndarray, row: int, column: int, width: int = 96, height: int = 64):
    top, left = CAPTION_HEIGHT + row * (height + GAP), column * (width + GAP)
    return picture[top : top + height, left : left + width]


def test_comparison_shows_image_truth_and_every_network(networks):
    picture = np.asarray(comparison(networks, number=2))
    assert picture.shape[1] == 4 * 96 + 3 * GAP
    assert (cell(picture, 1, 2) == COLORS[1]).all() and (cell(picture, 1, 3) == COLORS[2]).all()
    truth = {tuple(c) for c in cell(picture, 0, 1).reshape(-1, 3)}
    assert truth <= {*COLORS, (0, 0, 0)} and len(truth) > 2
    assert networks["first"].student.training and not networks["second"].student.training


def test_networks_see_images_as_in_the_evaluation(tiny_cfg):
    opts = ("INPUT.SOURCE_SIZE", (96, 64), "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (32, 48))
    cfg = tiny_cfg("daformer", *opts, "TEST.AUG.FLIP", False)
    network, seen = build_model(cfg), []
    predict_once = network.predict_once

    def spy(records, *rest):
        seen.append(min(records[0]["image"].shape[1:]))
        return predict_once(records, *rest)

    network.predict_once = spy
    networks = [loaded(cfg, network)]
    for dataset in ("tiny_val", "tiny_source"):
        next(iter(predicted_scenes(networks, dataset, 1)))
    assert seen == [32, 48, 32, 48]


def test_a_set_without_labels_cannot_be_compared(networks):
    networks = {"first": networks["first"]}
    networks["first"].cfg.defrost()
    networks["first"].cfg.DATASETS.TEST = ("tiny_target",)
    with pytest.raises(ValueError, match="tiny_target has no labels"):
        comparison(networks, number=1)


def test_errors_are_red_exactly_where_the_prediction_differs_from_the_truth(networks):
    picture = np.asarray(comparison(networks, number=1, errors=True))
    truth = cell(picture, 0, 1)
    for column, favourite in ((2, 1), (3, 2)):
        red = (cell(picture, 1, column) == (214, 39, 40)).all(-1)
        ignored = (truth == 0).all(-1)
        assert np.array_equal(red, (truth != COLORS[favourite]).any(-1) & ~ignored)
        assert (cell(picture, 1, column)[ignored] == 0).all()


def test_large_images_are_shown_small(networks):
    picture = np.asarray(comparison(networks, number=1, width=48))
    assert picture.shape[1] == 4 * 48 + 3 * GAP
    assert (cell(picture, 0, 2, 48, 32) == COLORS[1]).all()


def test_without_a_test_set_the_key_is_named(tiny_cfg):
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty"):
        comparison({"run": loaded(tiny_cfg("daformer", "DATASETS.TEST", ()), nn.Identity())})


class Onlooker(nn.Module):
    """Says "sky" everywhere, and remembers the height and width of what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = []

    def forward(self, records):
        (record,) = records
        self.sizes.append(tuple(record["image"].shape[1:]))
        logits = torch.eye(4)[2].view(4, 1, 1).expand(4, record["height"], record["width"])
        return [{"sem_seg": logits}]


def test_each_network_sees_the_images_at_the_size_of_its_own_config(tiny_cfg):
    sizes = {"small": "(48,32)", "native": "(96,64)", "large": "(192,128)"}
    runs = {
        name: loaded(tiny_cfg("daformer", "INPUT.TARGET_SIZE", size), Onlooker())
        for name, size in sizes.items()
    }
    comparison(runs, number=2)
    shown = {name: each.student.sizes for name, each in runs.items()}
    assert shown == {"small": [(32, 48)] * 2, "native": [(64, 96)] * 2, "large": [(128, 192)] * 2}


def test_a_network_of_other_classes_is_refused(tiny_cfg, other_world):
    runs = {
        "fits": loaded(tiny_cfg("daformer"), Onlooker()),
        "other": loaded(tiny_cfg("daformer", "DATASETS.TRAIN", (other_world,)), Onlooker()),
    }
    with pytest.raises(ValueError, match="other cannot be compared: it knows a, b, c, d; tiny_val"):
        comparison(runs, number=1)
    with pytest.raises(ValueError, match="it knows 5 classes"):
        unknown = ["DATASETS.TRAIN", ("nowhere",), "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 5]
        comparison({"run": loaded(tiny_cfg("daformer", *unknown), Onlooker())}, number=1)


@pytest.fixture
def other_world():
    """The name of a set with as many classes as the tiny world, but others."""
    MetadataCatalog.get("other_world").set(stuff_classes=["a", "b", "c", "d"])
    yield "other_world"
    MetadataCatalog.remove("other_world")


def test_figures_of_prototypes_refuse_a_set_whose_classes_have_changed_places(trained_runs):
    networks = load_networks(trained_runs["daformer_gauss"])
    names = list(networks.metadata.stuff_classes)
    swapped = Metadata(stuff_classes=names[::-1], stuff_colors=networks.metadata.stuff_colors)
    networks = networks._replace(metadata=swapped)
    for figure in (
        lambda: activation_figure(networks, "tiny_val", names[0]),
        lambda: feature_figure(networks, method="pca"),
        lambda: inspect(networks),
    ):
        with pytest.raises(ValueError, match="it knows box, sky, hedge, ground; tiny_"):
            figure()
