"""The first lines of a log, and what a start leaves behind."""

import logging
import random
import sys
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from mpcl.checkpoint.weights import WeightsCheckpointer
from mpcl.data.sets.classes import classes_of
from mpcl.engine import job


@pytest.fixture(autouse=True)
def no_handlers(monkeypatch):
    """Those of a run would stay for all later tests, and its level."""
    monkeypatch.setattr(job, "setup_logger", lambda *args, **kwargs: None)
    packing = logging.getLogger("detectron2.data.common")
    level = packing.level
    yield
    packing.setLevel(level)


def test_the_log_shows_what_differs_and_the_file_has_all(tiny_cfg, monkeypatch, caplog, tmp_path):
    cfg = tiny_cfg("daformer_gauss", "SEED", 5)
    monkeypatch.setattr(sys, "argv", ["train_net.py", "INPUT.CROP.SIZE", "(64, 64)"])
    with caplog.at_level(logging.INFO, logger="mpcl.engine.job"):
        job.start_process(cfg)
    text = caplog.text
    assert (
        "train_net.py INPUT.CROP.SIZE '(64, 64)'" in text
        and f"torch {torch.__version__}"[:8] in text
    )
    assert "\n  PROTOTYPES.NUM_PER_CLASS: 3\n" in text and "  SEED: 5" in text
    # Neither another project's keys, nor those of this one that are as they were.
    assert "RPN" not in text and "EMA" not in text and "\x1b" not in text
    assert len(text.splitlines()) < 60
    job.describe(cfg, Namespace(eval_only=False, config_file="", resume=False))
    saved = yaml.safe_load((tmp_path / "output/config.yaml").read_text())
    assert saved == yaml.safe_load(cfg.dump())
    assert saved["MODEL"]["RPN"] and saved["PROTOTYPES"]["NUM_PER_CLASS"] == 3
    first = torch.rand(3)
    job.start_process(cfg)
    assert torch.equal(first, torch.rand(3))


@pytest.mark.parametrize("dropped", ["prototype_head.", "prototype_head.banks."])
def test_only_prototypes_that_are_partly_there_are_missed(tiny_cfg, tmp_path, caplog, dropped):
    model = build_model(tiny_cfg("daformer_gauss"))
    state = model.state_dict()
    kept = {name: tensor for name, tensor in state.items() if not name.startswith(dropped)}
    torch.save({"model": kept}, tmp_path / "weights.pth")
    checkpointer = WeightsCheckpointer(model)
    checkpointer.load(str(tmp_path / "weights.pth"))
    missed = "not found in the checkpoint" in caplog.text
    assert missed == (dropped != "prototype_head.")
    lacking = {name for name in state.keys() - kept.keys() if "num_batches" not in name}
    assert set(checkpointer.initial) == lacking  # (torch never misses that counter)


@pytest.mark.parametrize("head, other", [("shared", "separate"), ("separate", "shared")])
def test_a_prototype_head_of_another_kind_is_refused(tiny_cfg, tmp_path, head, other):
    saved = build_model(tiny_cfg("daformer_gauss", "PROTOTYPES.HEAD", head))
    torch.save({"model": saved.state_dict()}, tmp_path / "weights.pth")
    for options in ((), ("SELF_TRAINING.ENABLED", False, "PROTOTYPES.TYPE", "none")):
        cfg = tiny_cfg("daformer_gauss", "PROTOTYPES.HEAD", other, *options)
        checkpointer = WeightsCheckpointer(build_model(cfg))
        if options:  # the classifier alone
            checkpointer.load(str(tmp_path / "weights.pth"))
            continue
        with pytest.raises(ValueError, match=rf"weights\.pth.*Set PROTOTYPES\.HEAD {head}"):
            checkpointer.load(str(tmp_path / "weights.pth"))
    centroid = build_model(tiny_cfg("daformer_centroid", "PROTOTYPES.HEAD", head))
    with pytest.raises(ValueError, match=r"prototypes\.variance"):
        WeightsCheckpointer(centroid).load(str(tmp_path / "weights.pth"))
    # A new run begins its prototypes anew, of whatever type.
    WeightsCheckpointer(centroid, with_prototypes=False).load(str(tmp_path / "weights.pth"))


def test_a_set_without_colours_keeps_its_names(tiny_cfg):
    MetadataCatalog.get("colourless").set(stuff_classes=["a", "b", "c", "d"])
    found = classes_of(tiny_cfg("source_only", "DATASETS.TRAIN", ("colourless",)))
    MetadataCatalog.remove("colourless")
    assert found.stuff_classes == ["a", "b", "c", "d"] and len(set(found.stuff_colors)) == 4


def test_the_first_random_numbers_are_those_of_the_seed(tiny_cfg):
    drawn = []
    for seed in (5, 5, 6):
        job.start_process(tiny_cfg("source_only", "SEED", seed))
        drawn.append((torch.rand(1).item(), np.random.rand(), random.random()))
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(*drawn[1:]))  # else all seeds start alike


@pytest.mark.parametrize("eval_only", [False, True])
def test_cudnn_may_try_algorithms_in_a_training_whose_config_says_so(
    tiny_cfg, monkeypatch, eval_only
):
    for wanted in (True, False):
        monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
        job.start_process(tiny_cfg("source_only", "CUDNN_BENCHMARK", wanted), eval_only=eval_only)
        assert torch.backends.cudnn.benchmark == (wanted and not eval_only)


def test_an_evaluation_leaves_the_description_of_a_run_as_it_is(tiny_cfg):
    cfg = tiny_cfg("source_only")
    args = Namespace(eval_only=False, config_file="", resume=False)
    job.describe(cfg, args)
    folder = Path(cfg.OUTPUT_DIR)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert before.keys() == {"config.yaml", "classes.json", "run.json"}
    other = tiny_cfg("source_only", "SEED", 9, "TEST.AMP", False)
    job.describe(other, Namespace(eval_only=True, config_file="", resume=False))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
