"""docs/PREDICT.md: each command is run on a tiny MIC, and each block of Python."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from camera import open_capture
from checkpoint_fixtures import official_segmentor
from conftest import NUM_CLASSES, TINY, draw_scene
from detectron2.modeling import build_model
from pages import ROOT, blocks
from run_fixtures import save_run
from sandbox import enter, run, runnable, save

from mpcl.predict import export

PAGE = ROOT / "docs" / "PREDICT.md"


@pytest.fixture
def checkout(tiny_cfg, tmp_path, monkeypatch) -> Path:
    """The reader's folder: a run, a published checkpoint, photographs, a video and a slim file."""
    enter(tmp_path, monkeypatch)
    cfg = tiny_cfg("mic_gauss", "OUTPUT_DIR", "output/gta5_to_cityscapes/mic_gauss")
    folder = save_run(cfg)
    published = official_segmentor(build_model(cfg))
    state = {f"model.{name}": tensor for name, tensor in published.items()}
    Path("mic_hrda").mkdir()
    torch.save({"state_dict": state, "meta": {"iter": 40000}}, "mic_hrda/latest.pth")
    photos = ("photos/a.png", "photos/deep/b.jpg", "drive/monday/c.png", "street.jpg")
    for i, name in enumerate(photos):
        save(draw_scene(np.random.default_rng(i), "target")[0], Path(name))
    video = cv2.VideoWriter("drive.mp4", cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
    for i in range(3):
        video.write(draw_scene(np.random.default_rng(i), "target")[0])
    video.release()
    return folder


def slim(commands: list) -> list:
    """The commands that write a slim file first: the page uses it before it explains it."""
    return sorted(commands, key=lambda command: "slim" not in command.words)


def test_every_command_works(checkout, tiny_world, monkeypatch, capsys):
    monkeypatch.setattr(cv2, "VideoCapture", open_capture)
    small = [*TINY, "DATASETS.TEST", f"('{tiny_world['val']}',)"]
    steps = slim(runnable(PAGE))
    # test_export.py exports to ONNX: that takes a quarter of a minute.
    monkeypatch.setattr(export, "_onnx", lambda *args, about: export._torchscript(*args))
    for command in steps:
        run(command, small)
    assert len(steps) == 8
    said = capsys.readouterr().out
    assert "matched" in said and "mIoU" in said and "largest difference" in said
    assert Path("out/overlay/camera_0.mp4").is_file()


@pytest.mark.parametrize("page", [PAGE, ROOT / "README.md"], ids=lambda page: page.name)
def test_the_library_works_as_printed(checkout, page, capsys):
    image = draw_scene(np.random.default_rng(0), "target")[0]
    programs = [block.text for block in blocks(page) if block.language == "python"]
    assert programs
    for program in programs:
        names = {"image_1": image, "image_2": image[:40]}
        exec(program, names)
        assert names["labels"].shape == (64, 96) and names["logits"].shape[0] == NUM_CLASSES
