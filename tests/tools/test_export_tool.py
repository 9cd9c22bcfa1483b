"""What tools/export.py prints and refuses."""

import export as tool
import pytest
import torch
from conftest import SMALLEST
from run_fixtures import save_run


@pytest.fixture
def run(tiny_cfg) -> str:
    return str(save_run(tiny_cfg("daformer_gauss", *SMALLEST)))


def test_slim_says_what_was_written(run, tmp_path, capsys):
    out = tmp_path / "out" / "slim.pth"
    assert tool.main(["--run", run, "--format", "slim", "--output", str(out)]) == 0
    said = capsys.readouterr().out
    tensors = len(torch.load(out, weights_only=True)["model"])
    assert f"{out}: teacher, {tensors} tensors" in said and "MiB" in said
    student = ["--run", run, "--format", "slim", "--output", str(out), "--student"]
    with pytest.raises(SystemExit):
        tool.main(student)
    assert "--overwrite" in capsys.readouterr().err
    assert tool.main([*student, "--overwrite"]) == 0
    assert f"student, {tensors} tensors" in capsys.readouterr().out


def test_parity_is_printed_and_decides_the_exit_status(run, tmp_path, capsys):
    out = ["--format", "torchscript", "--output", str(tmp_path / "net.pt"), "--size", "64", "96"]
    assert tool.main(["--run", run, *out]) == 0
    said = capsys.readouterr().out
    assert "teacher as torchscript, any size" in said
    assert "images 1x3x64x96: largest difference" in said
    assert "images 2x3x88x137: largest difference" in said
    assert tool.main(["--run", run, *out, "--overwrite", "--tolerance", "-1"]) == 1


def test_format_and_suffix_must_fit(run, tmp_path, capsys):
    for export_format, message in (("onnx", "must end in .onnx"), ("tflite", "one of slim, torch")):
        with pytest.raises(SystemExit, match="2"):
            tool.main(["--run", run, "--format", export_format, "--output", str(tmp_path / "n.pt")])
        assert message in capsys.readouterr().err
