"""The doctor: its whole report as a user runs it, and what a config asks for."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mpcl.config import get_cfg_from
from mpcl.config.preflight import preflight

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "tools" / "doctor.py"


@pytest.fixture
def stubs(tmp_path):
    """Modules laid here hide the installed ones from the doctor."""
    folder = tmp_path / "stubs"
    folder.mkdir()
    return folder


@pytest.fixture
def run_doctor(tmp_path, stubs):
    """Runs the doctor in ``tmp_path``; returns its exit status and its output."""

    def run():
        path = os.pathsep.join([str(stubs), str(REPOSITORY / "projects" / "MPCL")])
        env = {**os.environ, "PYTHONPATH": path, "DETECTRON2_DATASETS": "data"}
        result = subprocess.run(
            [sys.executable, str(SCRIPT)], capture_output=True, text=True, cwd=tmp_path, env=env
        )
        assert "Traceback" not in result.stderr, result.stderr
        return result.returncode, result.stdout

    return run


def line_of(name, output):
    """The words of the report's line on one thing."""
    return next(line.split() for line in output.splitlines() if line.split()[1:2] == [name])


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_broken_modules_stop_with_a_remedy_each_and_the_report_goes_on(run_doctor, stubs, tmp_path):
    (stubs / "iopath.py").write_text("raise RuntimeError('half a package')\n")
    (stubs / "tensorboard.py").write_text("raise SystemExit(0)\n")
    message = "operator torchvision::nms does not exist"
    (stubs / "torchvision.py").write_text(f"raise RuntimeError('{message}')\n")
    touch(tmp_path / "output")  # a file where the folder would go
    status, output = run_doctor()
    assert status == 1
    assert "RuntimeError: half a package" in " ".join(line_of("iopath", output))
    assert line_of("tensorboard", output)[:3] == ["STOP", "tensorboard", "SystemExit:"]
    assert message in " ".join(line_of("torchvision", output))
    assert line_of("torch", output)[0] == line_of("cpu", output)[0] == "ok"
    assert "  iopath: python -m pip install -e ." in output
    assert "  torchvision: install torch and torchvision of one release" in output
    assert "  detectron2: python tools/install_detectron2.py" in output  # it imports iopath
    assert line_of("output", output)[0] == "STOP"


@pytest.fixture
def doctor(monkeypatch, tmp_path):
    """The doctor as a module, looking at data sets and outputs in ``tmp_path``."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = importlib.util.spec_from_file_location("doctor", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DETECTRON2_DATASETS", "data")
    monkeypatch.setattr(module.faulthandler, "enable", lambda: None)  # pytest has its own
    return module


def test_missing_data_is_no_obstacle_and_files_that_are_there_are_counted(doctor, capsys, tmp_path):
    for number in range(3):
        touch(tmp_path / f"data/CamVid/train/0001TP_{number:06d}.png")
    touch(tmp_path / "weights/mit_b0.pth")
    (tmp_path / "weights/mit_b0.pth").write_bytes(b"\0" * 2_000_000)
    status, output = doctor.main([]), capsys.readouterr().out
    assert status == 0, output
    assert "Nothing stops a training." in output
    for name in ("torch", "torchvision", "detectron2", "mpcl", "cpu", "output"):
        assert line_of(name, output)[0] == "ok"
    assert "gta5" not in output and "cityscapes" not in output  # nobody has asked for them
    assert line_of("data", output)[:2] == ["ok", "data"] and "known ones are not there" in output
    assert line_of("camvid_dusk_images_train", output)[2:] == ["3", "images"]
    assert line_of("weights", output)[2:] == ["weights/mit_b0.pth,", "2", "MB"]


CONFIG = """
MODEL: {WEIGHTS: weights/mit_b5.pth, DEVICE: cpu}
DATASETS: {TRAIN: [gta5_sem_seg_train], TRAIN_TARGET: [camvid_dusk_images_train], TEST: []}
"""


def test_what_stops_a_training_is_what_the_training_says(doctor):
    Path("config.yaml").write_text(CONFIG)
    opts = ["DATASETS.TEST", "('no_such_set',)"]
    found = list(doctor.check_run("config.yaml", opts))
    stops = [finding.text for finding in found if finding.mark == "STOP"]
    with pytest.raises(ValueError) as refused:
        preflight(get_cfg_from("config.yaml", opts))
    assert len(stops) == 4 and all(fault in str(refused.value) for fault in stops)
    for name in ("mit_b5.pth", "DATASETS.TRAIN:", "DATASETS.TRAIN_TARGET:", "'no_such_set'"):
        assert any(name in fault for fault in stops)


def test_a_config_whose_needs_are_met_passes(doctor, tiny_cfg):
    Path("config.yaml").write_text(tiny_cfg("daformer_gauss").dump())
    findings = {finding.name: finding for finding in doctor.check_run("config.yaml", [])}
    assert {finding.mark for finding in findings.values()} <= {"ok", "note"}
    assert findings["tiny_source"].text == "6 images" and findings["disk"].text.endswith("free")
    assert "random start" in findings["weights"].text


def test_faults_stand_in_the_report_and_in_its_end(doctor, capsys):
    Path("config.yaml").write_text(CONFIG)
    assert doctor.report(doctor.check_run("config.yaml", [])) == 3
    printed = capsys.readouterr().out
    assert "3 stop a training" in printed and printed.count("no weights at weights/mit_b5.pth") == 2


def test_a_config_for_a_gpu_stops_where_there_is_none(doctor, monkeypatch, tiny_cfg):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    Path("config.yaml").write_text(tiny_cfg("daformer_gauss").dump())
    opts = ["MODEL.DEVICE", "cuda"]
    stops = [f.text for f in doctor.check_run("config.yaml", opts) if f.mark == "STOP"]
    assert len(stops) == 1 and "set MODEL.DEVICE cpu" in stops[0]


@pytest.mark.parametrize(
    ("file", "word"), [("config.yaml", "NO_SUCH_KEY"), ("none.yaml", "none.yaml")]
)
def test_a_config_that_cannot_be_read_is_reported(doctor, file, word):
    Path("config.yaml").write_text("MODEL: {NO_SUCH_KEY: 1}\n")
    (stop,) = [f for f in doctor.check_run(file, []) if f.mark == "STOP"]
    assert stop.name == "config" and word in stop.text


def test_options_without_a_config_are_refused(doctor, capsys):
    with pytest.raises(SystemExit):
        doctor.main(["MODEL.DEVICE", "cpu"])
    assert "--config-file" in capsys.readouterr().err


def test_little_disk_space_is_told(doctor, monkeypatch):
    usage = type("Usage", (), {"free": 1e9, "total": 1e12})
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: usage)
    (finding,) = doctor.check_space(Path("output"))
    assert (finding.mark, finding.text) == ("note", "1 GB free")


@pytest.mark.parametrize(("version", "known"), [("2.5.1", 1), ("2.9.1+cu130", 1), ("2.10.0", 0)])
def test_a_torch_that_can_run_code_from_weights_is_noted(doctor, monkeypatch, version, known):
    # Fixed in 2.6 (CVE-2025-32434) and in 2.10 (CVE-2026-24747).
    monkeypatch.setattr("torch.__version__", version)
    assert [finding.mark for finding in doctor.check_unpickler()] == ["note"] * known
