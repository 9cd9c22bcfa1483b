"""The stages of tools/gpu_check.py run, and end, whatever they do."""

import json
import os

import gpu_check
import pytest

STAGES = ["train", "evaluation", "predictor", "clustering"]


@pytest.mark.slow
def test_tiny_stages_run_on_the_cpu(tmp_path, capfd, monkeypatch):
    """MPCL_TEST_FULL=1: all stages."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stages = [*gpu_check.LIMITS] if os.environ.get("MPCL_TEST_FULL") else STAGES
    words = ["--output", str(tmp_path), "--tiny", "--device", "cpu", "--minutes", "30"]
    status = gpu_check.main([*words, "--stages", *stages])
    printed = capfd.readouterr().out
    assert status == 0, printed
    assert json.loads((tmp_path / "summary.json").read_text()) == dict.fromkeys(stages, "ok")
    trained = json.loads((tmp_path / "train.json").read_text())
    assert trained["loss_contrast"] > 0 and trained["seconds an iteration"] > 0
    assert "images a second" in printed


def test_stage_that_hangs_or_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    scripts = {
        "train": "import time; print('begun', flush=True); time.sleep(60)",
        "step": "raise SystemExit(3)",
        "peaks": "pass",
    }
    monkeypatch.setattr(gpu_check, "commands", lambda stage, args: ["-c", scripts[stage]])
    monkeypatch.setattr(gpu_check, "LIMITS", {"train": 3, "step": 60, "peaks": 60})
    assert gpu_check.main(["--output", str(tmp_path), "--stages", *scripts]) == 1
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary == {"train": "out of time (3 s)", "step": "failed (status 3)", "peaks": "ok"}
    assert (tmp_path / "train.log").read_text() == "begun\n"


def test_stage_of_tests_names_the_files_that_have_some():
    args = gpu_check.parse_args(["--output", "x"])
    files = [word.rpartition("/")[2] for word in gpu_check.commands("tests", args)]
    assert "test_host_reads.py" in files and "test_kmeans.py" not in files


@pytest.mark.parametrize("words", [[], ["--output", "x", "--collect-wheels", "y"]])
def test_one_purpose_is_to_be_named(words, capsys):
    with pytest.raises(SystemExit):
        gpu_check.parse_args(words)
    assert "either --output or --collect-wheels" in capsys.readouterr().err
