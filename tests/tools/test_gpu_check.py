"""The stages of tools/gpu_check.py run, and end, whatever they do."""

import json
import os

import gpu_check
import gpu_stages
import pytest

IN_A_PROCESS = {"train", "resume", "evaluation"}  # Detectron2 is told where data are when imported


def test_tiny_stages_run_on_the_cpu(tmp_path, capfd, monkeypatch):
    """With MPCL_TEST_FULL=1 as the command runs them. Else a process that need not be, which takes
    seconds to start, is none; and the doctor and the tests for a GPU are left to their own."""
    run = gpu_check.run

    def run_here(command, log, seconds, environment):
        if IN_A_PROCESS & {*command}:
            return run(command, log, seconds, environment)
        gpu_stages.main(command[1:])
        return "ok"

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    stages = [*gpu_check.LIMITS]
    if not os.environ.get("MPCL_TEST_FULL"):
        stages = [*gpu_stages.STAGES]
        monkeypatch.setattr(gpu_check, "run", run_here)
    words = ["--output", str(tmp_path), "--tiny", "--device", "cpu", "--minutes", "30"]
    status = gpu_check.main([*words, "--stages", *stages])
    printed = capfd.readouterr().out
    assert status == 0, printed
    assert json.loads((tmp_path / "summary.json").read_text()) == dict.fromkeys(stages, "ok")
    for stage in gpu_stages.STAGES:
        assert json.loads((tmp_path / f"{stage}.json").read_text()), stage
    trained = json.loads((tmp_path / "train.json").read_text())
    assert trained["seconds an iteration"] > 0
    assert "images a second" in printed


def test_every_stage_has_a_limit():
    assert {*gpu_check.LIMITS} == {"versions", "tests", *gpu_stages.STAGES}


@pytest.mark.parametrize("loss", [None, 0.0, float("nan"), float("inf")])
def test_training_with_a_loss_that_is_missing_or_idle_is_no_success(tmp_path, monkeypatch, loss):
    line = {f"loss_{name}": 1.0 for name in gpu_stages.LOSSES}
    line |= {"skipped_steps": 0, "prototypes/started": 1, "max_mem_MiB": 1, "iteration": 80}
    line |= {"time": 1.0, "data_time": 0.0}
    stage = gpu_stages.Stage(tmp_path, "cpu", tiny=True)
    monkeypatch.setattr(stage, "train", lambda *_: [line])
    assert gpu_stages.train(stage)["loss_sem_seg_masked"] == 1
    if loss is None:
        del line["loss_sem_seg_masked"]
    else:
        line["loss_sem_seg_masked"] = loss
    with pytest.raises(RuntimeError, match="not positive and finite"):
        gpu_stages.train(stage)


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


def test_the_limits_of_stages_are_shares_of_the_minutes(tmp_path, monkeypatch):
    given = {}

    def run(command, log, seconds, environment):
        given[log.stem] = seconds
        return "ok"

    monkeypatch.setattr(gpu_check, "run", run)
    stages = ("versions", "train")
    assert gpu_check.main(["--output", str(tmp_path), "--minutes", "4", "--stages", *stages]) == 0
    expected = {stage: gpu_check.LIMITS[stage] / 2 for stage in stages}  # they are of eight
    assert given == pytest.approx(expected)
