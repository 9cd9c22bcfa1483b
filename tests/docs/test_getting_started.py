"""docs/GETTING_STARTED.md, step by step, on leaves of 96 x 64 pixels."""

from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from detectron2.data import DatasetCatalog, MetadataCatalog
from pages import ROOT, blocks
from PIL import Image
from sandbox import enter, run, runnable, save_scenes, write_files

from mpcl.data.sets import custom

PAGE = ROOT / "docs" / "GETTING_STARTED.md"
SHORT = [*TINY, "SOLVER.MAX_ITER", "2", "PROTOTYPES.INIT.ITER", "1", "VIS_PERIOD", "0"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """The reader's folder after step 3: images, description and config; the encoder is tiny."""
    enter(tmp_path, monkeypatch)
    write_files(PAGE)
    data = tmp_path / "my_data"
    save_scenes(data / "greenhouse", 4, "source", suffix=".jpg", ids=(0, 80, 160, 240))
    save_scenes(data / "field", 4, "target", suffix=".jpg")
    save_scenes(data / "field_test", 2, "target", suffix=".jpg", ids=(0, 80, 160, 240))
    yield tmp_path
    for name in [name for name in DatasetCatalog if name.startswith("leaves_")]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        custom._registered.pop(name, None)


# Tested elsewhere, because they look at the machine, start processes, or take a minute.
ELSEWHERE = {
    "tools/demo.py": "tests/tools/test_demo.py",
    "tools/doctor.py": "tests/tools/test_doctor.py",
    "tools/run_seeds.py": "tests/tools/test_run_seeds.py",
    "onnx": "test_predict_page.py",
}


def test_every_command_works_in_the_order_of_the_page(checkout, capsys):
    steps = [command for command in runnable(PAGE) if not ELSEWHERE.keys() & set(command.words)]
    for command in steps:
        run(command, SHORT)
    assert len(steps) == 12
    said = capsys.readouterr().out
    names = {path.stem for path in Path("my_data/field/images").iterdir()}
    for kind in ("overlay", "train_ids"):
        written = {path.stem for path in Path("predictions", kind).iterdir()}
        assert written == names | ({"legend"} if kind == "overlay" else set())
    ids = np.array(Image.open("from_slim/train_ids/0.png"))
    assert ids.shape == (64, 96) and ids.max() < 4
    assert all(Path(name).is_file() for name in ("comparison.png", "report.html", "leaves.pth"))
    # The label map was applied: classes in the evaluation, not grey values.
    assert "mildew" in said


def test_the_files_of_the_page_are_written_by_the_test():
    yaml = [block.text for block in blocks(PAGE) if block.language == "yaml"]
    assert len(yaml) == 2 and all(text.startswith("# my_data/") for text in yaml)
