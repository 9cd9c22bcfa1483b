"""What makes a run another run."""

import uuid
from types import SimpleNamespace

import pytest

from mpcl.data.sets.registration import set_metadata
from mpcl.engine.run_identity import check_same_run, run_identity


def config(label_map, classes=("a", "b"), changed=False):
    name = f"identity_{uuid.uuid4().hex}"
    set_metadata(name, list(classes), [(0, 0, 0)] * len(classes), label_map=label_map)
    solver = SimpleNamespace(IMS_PER_BATCH=2, RESUME_CHANGED=changed)
    return SimpleNamespace(
        SEED=0,
        SOLVER=solver,
        DATASETS=SimpleNamespace(TRAIN=(name,), TEST=("val", "test"), SHARES=()),
        SELF_TRAINING=SimpleNamespace(ENABLED=True),
        PROTOTYPES=SimpleNamespace(TYPE="gauss"),
    )


def test_labels_that_mean_something_else_make_another_run():
    saved = run_identity(config({7: 0, (1, 2, 3): 1}))
    check_same_run(saved, config({(1, 2, 3): 1, 7: 0}))
    for changed in (({7: 1, (1, 2, 3): 0},), ({7: 0, (1, 2, 3): 1}, ("b", "a")), (None,)):
        with pytest.raises(ValueError, match=r"classes and label_map of DATASETS\.TRAIN was"):
            check_same_run(saved, config(*changed))
        check_same_run(saved, config(*changed, **{"changed": True}))


def test_another_method_makes_another_run():
    cfg = config(None)
    saved = run_identity(cfg)
    cfg.PROTOTYPES.TYPE = "centroid"
    with pytest.raises(ValueError, match=r"PROTOTYPES\.TYPE was gauss and is centroid"):
        check_same_run(saved, cfg)
    cfg.PROTOTYPES.TYPE, cfg.SELF_TRAINING.ENABLED = "gauss", False
    with pytest.raises(ValueError, match=r"SELF_TRAINING\.ENABLED was True and is False"):
        check_same_run(saved, cfg)


def test_scores_stay_those_of_their_set():
    cfg = config(None)
    saved = run_identity(cfg)
    for fitting in (("val",), ("val", "other"), ()):
        cfg.DATASETS.TEST = fitting
        check_same_run(saved, cfg)
    without = run_identity(cfg)
    cfg.DATASETS.TEST = ("test", "val")
    with pytest.raises(ValueError, match=r"first of DATASETS\.TEST was val and is test"):
        check_same_run(saved, cfg)
    check_same_run(without, cfg)  # there were no scores so far


def test_other_shares_of_the_sets_make_another_run():
    cfg = config(None)
    saved = run_identity(cfg)
    cfg.DATASETS.SHARES = ((cfg.DATASETS.TRAIN[0], 1),)
    with pytest.raises(ValueError, match=r"DATASETS\.SHARES was \[\] and is \[\('identity_"):
        check_same_run(saved, cfg)
    saved = run_identity(cfg)
    cfg.DATASETS.SHARES = [[cfg.DATASETS.TRAIN[0], 1.0]]  # as a file has it
    check_same_run(saved, cfg)
