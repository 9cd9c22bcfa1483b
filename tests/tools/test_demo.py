"""The demo from nothing, at a size that takes seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[2]
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16", "INPUT.CROP.SIZE", "(64,64)"),
    *("INPUT.SOURCE_SIZE", "(128,64)", "INPUT.TARGET_SIZE", "(128,64)", "LOG_PERIOD", "1"),
    *("PROTOTYPES.INIT.ITER", "1", "PROTOTYPES.DIM", "16", "PROTOTYPES.BANK.SIZE", "100"),
    *("SOLVER.IMS_PER_BATCH", "2"),
]


def test_demo_ends_with_results_and_a_picture(tmp_path):
    environment = os.environ | {"DETECTRON2_DATASETS": str(tmp_path), "OMP_NUM_THREADS": "1"}
    data = [*("--num-source", "6", "--num-target", "4", "--num-val", "3", "--size", "64", "128")]
    make = [sys.executable, str(ROOT / "datasets" / "prepare_streets.py"), "--workers", "1"]
    subprocess.run([*make, "--output", str(tmp_path), *data], check=True, capture_output=True)
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools" / "demo.py"), "--keep-data"]
    options = ["--output", str(tmp_path / "demo"), "--iterations", "2", "2", "--images", "2"]
    run = subprocess.run(
        [*command, *options, *TINY], env=environment, capture_output=True, text=True, cwd=tmp_path
    )
    assert run.returncode == 0, run.stdout + run.stderr
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert results["device"] == "cpu" and results["seconds"] > 0
    assert list(results["runs"]) == ["source_only", "daformer", "daformer_gauss"]
    for name, scores in results["runs"].items():
        assert 0 <= scores["student"] <= 100
        assert (scores["teacher"] is None) == (name == "source_only")
    picture = Image.open(tmp_path / "demo" / "predictions.png")
    assert picture.width == 5 * 128 + 4 * 4  # image, truth, three predictions; gaps
    report = (tmp_path / "demo" / "report.html").read_text(encoding="utf-8")
    assert "PROTOTYPES.TYPE" in report and 'data-chart="loss_contrast"' in report
    for word in ("source_only", "daformer_gauss", "student", "teacher", "predictions.png"):
        assert word in run.stdout
    assert "report.html" in run.stdout
