"""The driver of several seeds, around a training that takes no time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import run_seeds as tool

from mpcl.config import get_cfg_from

# What a training leaves behind, without training: its arguments, and a score that depends on SEED.
STUB = """
import json, pathlib, sys, yaml
arguments = sys.argv[1:]
words = [w for w in arguments if w != "--resume"]
assert words[0] == "--config-file" and words[2] == "--num-gpus"
config = yaml.safe_load(pathlib.Path(__file__).with_name("defaults.yaml").read_text())
for key, value in zip(words[4::2], words[5::2]):
    node, parts = config, key.split(".")
    for part in parts[:-1]:
        node = node[part]
    node[parts[-1]] = yaml.safe_load(value)
folder = pathlib.Path(config["OUTPUT_DIR"])
folder.mkdir(parents=True, exist_ok=True)
with (folder / "calls").open("a") as calls:
    calls.write(json.dumps(arguments) + "\\n")
(folder / "config.yaml").write_text(yaml.safe_dump(config))
(folder / "model_0000001.pth").touch()
if config["SEED"] == 13 and "--resume" not in arguments:
    sys.exit(3)
(folder / "model_final.pth").touch()
row = {"iteration": config["SOLVER"]["MAX_ITER"], "sem_seg/mIoU": 50 + config["SEED"]}
if not config["DATASETS"]["TEST"]:
    row = {"iteration": config["SOLVER"]["MAX_ITER"] - 1, "total_loss": 1.0}
(folder / "metrics.json").write_text(json.dumps(row) + "\\n")
"""
OPTS = ["SOLVER.MAX_ITER", "7", "MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "x.pth"]


@pytest.fixture
def start(tmp_path, monkeypatch):
    """``start(seed, ..., opts)``: the tool on the stub, with outputs in ``tmp_path``."""
    (tmp_path / "stub.py").write_text(STUB)
    monkeypatch.setattr(tool, "TRAIN_NET", tmp_path / "stub.py")
    config = Path(__file__).parents[2] / "projects/MPCL/configs/source_only.yaml"
    (tmp_path / "defaults.yaml").write_text(get_cfg_from(str(config)).dump())

    def run(*seeds: int, opts: tuple[str, ...] = ()) -> int:
        own = ["--config-file", str(config), "--output", str(tmp_path / "out")]
        return tool.main([*own, "--seeds", *map(str, seeds), *OPTS, *opts])

    return run


def calls(folder: Path) -> list[list[str]]:
    return [json.loads(line) for line in (folder / "calls").read_text().splitlines()]


def test_every_seed_is_trained_once_and_the_mean_is_printed(start, tmp_path, capfd):
    assert start(0, 2) == 0
    for seed in (0, 2):
        folder = tmp_path / "out" / f"seed_{seed}"
        (arguments,) = calls(folder)
        assert arguments[-4:] == ["SEED", str(seed), "OUTPUT_DIR", str(folder)]
        assert arguments[2:4] == ["--num-gpus", "1"] and arguments[4:-4] == OPTS
    assert "51.00 ± 1.41" in capfd.readouterr().out  # 50 and 52

    assert start(0, 1, 2) == 0  # again, with one seed more
    assert [len(calls(tmp_path / "out" / f"seed_{s}")) for s in (0, 1, 2)] == [1, 1, 1]
    text = capfd.readouterr().out
    assert "seed_0 is finished" in text and "BUT" not in text and "51.00 ± 1.00" in text


def test_a_failure_stops_and_shows_the_command_and_the_next_start_resumes(start, tmp_path, capfd):
    assert start(13, 1) == 3
    shown = capfd.readouterr().err
    assert "Failed with exit status 3" in shown and "SEED 13 OUTPUT_DIR" in shown
    assert not (tmp_path / "out" / "seed_1").exists()
    assert start(13, 1) == 0
    first, second = calls(tmp_path / "out" / "seed_13")
    assert "--resume" not in first and "--resume" in second
    assert "--resume" not in calls(tmp_path / "out" / "seed_1")[0]


def test_ctrl_c_waits_until_the_training_has_saved(tmp_path, monkeypatch, capfd):
    class Interrupted(subprocess.Popen):
        """Meets a Ctrl-C in the first wait, as ``subprocess.run`` would."""

        waits = 0

        def wait(self, timeout=None):
            self.waits += 1
            if self.waits == 1:
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(tool.subprocess, "Popen", Interrupted)
    saves = (
        f"import time; time.sleep(1); open({str(tmp_path / 'saved')!r}, 'w'); raise SystemExit(75)"
    )
    assert tool.run_to_its_end([sys.executable, "-c", saves]) == 75
    assert (tmp_path / "saved").exists() and "Waiting" in capfd.readouterr().err


def test_more_iterations_make_a_finished_seed_go_on(start, tmp_path):
    start(0)
    start(0, opts=("SOLVER.MAX_ITER", "9"))
    assert "--resume" in calls(tmp_path / "out" / "seed_0")[1]


def test_seeds_without_test_sets_are_trained_once_too(start, tmp_path, capfd):
    for _ in range(2):
        assert start(0, opts=("DATASETS.TEST", "[]")) == 0
    assert len(calls(tmp_path / "out" / "seed_0")) == 1
    assert "seed_0 is finished" in capfd.readouterr().out


def test_other_settings_than_those_of_a_finished_seed_are_named(start, tmp_path, capfd):
    start(0)
    start(0, opts=("SOLVER.BASE_LR", "0.25"))
    assert len(calls(tmp_path / "out" / "seed_0")) == 1
    assert "BUT it was trained with SOLVER.BASE_LR" in capfd.readouterr().out


def test_seed_and_output_are_the_tools_own(capsys):
    for opts in (["SEED", "1"], ["OUTPUT_DIR", "x"]):
        with pytest.raises(SystemExit):
            tool.parse_args(["--config-file", "c.yaml", "--seeds", "0", *opts])
        assert "use --seeds and --output" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tool.parse_args(["--config-file", "c.yaml", "--seeds", "SOLVER.MAX_ITER", "1"])
    assert "whole numbers" in capsys.readouterr().err


def test_options_may_stand_between_seeds_and_settings():
    args = tool.parse_args(
        ["--config-file", "c.yaml", "--seeds", "0", "1", "--num-gpus", "2", "A.B", "-1"]
    )
    assert (args.seeds, args.num_gpus, args.opts) == ([0, 1], 2, ["A.B", "-1"])


def test_a_folder_that_is_a_run_itself_takes_no_seeds(start, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/config.yaml").write_text("SEED: 7")
    with pytest.raises(SystemExit, match="2"):
        start(0)
    said = capsys.readouterr().err
    assert "out holds a run itself" in said and "--output" in said
    assert not (tmp_path / "out/seed_0").exists()


def test_each_seed_trains_on_as_many_gpus_as_are_asked_for(tmp_path):
    args = tool.parse_args(["--config-file", "c.yaml", "--seeds", "0", "--num-gpus", "2"])
    line = tool.command(args, 0, tmp_path)
    assert line[line.index("--num-gpus") + 1] == "2"
