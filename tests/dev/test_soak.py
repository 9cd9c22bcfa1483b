import json
from pathlib import Path

import pytest
import soak
import torch

CONFIGS = Path(__file__).parents[2] / "projects" / "MPCL" / "configs"


def test_stopped_run_with_nans_and_corrupt_files_ends_like_the_undisturbed_one(tmp_path, capsys):
    short = ["--steps", "8", "--stops", "2", "--nans", "2", "--corrupt", "3"]
    config = ["--config-file", str(CONFIGS / "daformer_centroid.yaml"), "--seed", "1"]
    where = ["--checkpoint-period", "2", "--output", str(tmp_path)]
    status = soak.main([*short, *config, *where, "LOG_PERIOD", "3", "PROTOTYPES.INIT.ITER", "3"])
    printed = capsys.readouterr().out
    assert status == 0, printed
    report = json.loads((tmp_path / "soak.json").read_text())
    figures = report["figures"]
    assert figures["end states differ in"] == [] and figures["skipped steps"] == 2
    assert figures["processes of the stopped run"] == 3 == len(report["stops"])
    assert "All is well" in printed and "memory slope" in printed


def test_slope_is_that_of_the_second_half():
    flat_then_rising = [{"iteration": i, "memory": max(0, i - 50) * 0.25} for i in range(0, 101, 5)]
    growth, error = soak.slope(flat_then_rising, "memory")
    assert growth == pytest.approx(250) and error == pytest.approx(0, abs=1e-6)
    assert soak.slope([{"iteration": 0, "memory": 1.0}], "memory") == (0, 0)


def test_any_difference_between_the_ends_is_named(tmp_path):
    state = {"model": {"a": torch.zeros(2)}, "trainer": {"iteration": 3}}
    for name, changed in (("one", {}), ("two", {"model": {"a": torch.tensor([0.0, 1e-30])}})):
        (tmp_path / name).mkdir()
        torch.save(state | changed, tmp_path / name / "model_final.pth")
    assert soak.differences(tmp_path / "one", tmp_path / "two") == ["['model']['a']"]


def test_faults_are_reported(capsys):
    args = soak.parse_args(["--steps", "1000", "--nans", "3"])
    figures = {
        "end states differ in": ["['model']['a']"],
        "skipped steps": 2,
        "open files after a quarter": 20,
        "open files, most after it": 21,
        "memory slope, MiB per 1000 steps": 9.0,
        "its standard error": 1.0,
    }
    assert len(soak.failures(args, figures)) == 4


@pytest.mark.parametrize("wrong", [["--steps", "1"], ["--nans", "300"], ["--corrupt", "99"]])
def test_impossible_arguments_are_refused(wrong):
    with pytest.raises(SystemExit) as error:
        soak.parse_args(wrong)
    assert error.value.code == 2
