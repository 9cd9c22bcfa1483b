"""What a run writes down about itself."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIGS, SMALLEST
from detectron2.data import DatasetCatalog
from sklearn.metrics import confusion_matrix

from mpcl.config import get_cfg_from
from mpcl.data.labels import read_label
from mpcl.engine import AdaptationTrainer
from mpcl.evaluation.run_record import git_state, read_sessions, record_session
from mpcl.predict.predictor import predict

CONFIG = str(CONFIGS / "streets" / "daformer.yaml")


def test_a_session_names_its_command_and_what_differs_from_the_config_file(tmp_path):
    cfg = get_cfg_from(CONFIG, ["SOLVER.MAX_ITER", 7, "SEED", 3, "OUTPUT_DIR", str(tmp_path)])
    command = ["train_net.py", "--config-file", CONFIG]
    record_session(cfg, CONFIG, command=command)
    (session,) = read_sessions(tmp_path)
    assert session["command"] == command and session["config_file"] == CONFIG
    base = get_cfg_from(CONFIG).SOLVER.MAX_ITER
    assert session["changed"] == {"SOLVER.MAX_ITER": [base, 7]}  # SEED and OUTPUT_DIR may differ
    assert session["versions"]["numpy"] == np.__version__ and session["processes"] == 1


def test_resuming_adds_a_session_and_starting_anew_drops_the_old_ones(tmp_path):
    cfg = get_cfg_from(CONFIG, ["OUTPUT_DIR", str(tmp_path)])
    for resume, number in ((False, 1), (True, 2), (True, 3), (False, 1)):
        record_session(cfg, CONFIG, resume=resume)
        assert len(read_sessions(tmp_path)) == number


def test_a_session_that_goes_on_with_other_settings_says_so(tmp_path):
    for resume, weight in ((False, 1.0), (True, 0.5), (True, 0.5)):
        opts = ["OUTPUT_DIR", str(tmp_path), "PROTOTYPES.CONTRAST_WEIGHT", weight]
        cfg = get_cfg_from(CONFIG, opts)
        record_session(cfg, CONFIG, resume=resume)
        (tmp_path / "config.yaml").write_text(cfg.dump())
    changes = [session["resumed_with"] for session in read_sessions(tmp_path)]
    assert changes == [{}, {"PROTOTYPES.CONTRAST_WEIGHT": [1.0, 0.5]}, {}]


def test_git_state_counts_changed_files_and_is_none_outside_of_git(tmp_path):
    source = tmp_path / "package" / "source.py"
    source.parent.mkdir()
    source.touch()
    assert git_state(source) is None
    git(tmp_path, "init", "-q", "-b", "trunk")
    git(tmp_path, "add", "package/source.py")
    git(tmp_path, "commit", "-qm", "x")
    (tmp_path / "new.txt").touch()
    state = git_state(source)
    assert state["branch"] == "trunk" and state["changed_files"] == 1 and len(state["commit"]) == 40


def test_code_that_lies_untracked_in_another_project_has_no_commit(tmp_path):
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-qm", "theirs", "--allow-empty")
    (tmp_path / ".gitignore").write_text(".venv\n")
    installed = tmp_path / ".venv" / "mpcl" / "run_record.py"
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert git_state(installed) is None


def git(folder: Path, *words: str) -> None:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True)


def test_a_damaged_record_is_named(tmp_path):
    assert read_sessions(tmp_path) == []
    (tmp_path / "run.json").write_text('{"sessions": [')
    with pytest.raises(ValueError, match=r"run\.json is no valid JSON"):
        read_sessions(tmp_path)


def test_each_evaluation_leaves_the_confusion_matrix_of_its_network(tiny_cfg):
    cfg = tiny_cfg("daformer", *SMALLEST, "SOLVER.MAX_ITER", 2, "SOLVER.BASE_LR", 0.01)
    trainer = AdaptationTrainer(cfg)
    trainer.train()
    records = DatasetCatalog.get(cfg.DATASETS.TEST[0])
    loader = trainer.build_test_loader(cfg, cfg.DATASETS.TEST[0])
    truth = np.stack([read_label(r["sem_seg_file_name"]) for r in records])
    for role, network in (("teacher", trainer.teacher), ("student", trainer.student)):
        file = Path(cfg.OUTPUT_DIR, "inference", cfg.DATASETS.TEST[0], f"confusion_{role}.json")
        content = json.loads(file.read_text())
        predicted = np.stack([predict(network, batch[0]) for batch in loader])
        expected = confusion_matrix(
            truth[truth < 255], predicted[truth < 255], labels=range(len(content["classes"]))
        )
        assert np.array_equal(content["matrix"], expected)
        assert content["classes"] == ["ground", "hedge", "sky", "box"] and content["seconds"] > 0
