"""The notebook works on a run: its cells, one after the other, on the tests' tiny one."""

import json
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
from PIL import Image

NOTEBOOK = Path(__file__).parents[2] / "docs" / "first_look.ipynb"


def test_every_cell_runs_on_a_run_where_the_demo_leaves_its(
    trained_runs, tmp_path, monkeypatch, capsys
):
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert not any(cell.get("outputs") for cell in cells)  # of nobody's machine
    (tmp_path / "projects/MPCL").mkdir(parents=True)
    (tmp_path / "output/demo").mkdir(parents=True)
    (tmp_path / "output/demo/daformer_gauss").symlink_to(trained_runs["daformer_gauss"])
    monkeypatch.chdir(tmp_path / "output")  # it finds the root from below
    monkeypatch.setenv("DETECTRON2_DATASETS", "datasets")
    matplotlib.use("Agg")
    names: dict = {}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), NOTEBOOK.name, "exec"), names)
    plt.close("all")
    assert isinstance(names["picture"], Image.Image)
    assert names["share"].sum() > 1 and names["share"].shape == (4, 4)
    said = capsys.readouterr().out
    rows = (trained_runs["daformer_gauss"] / "metrics.json").read_text().splitlines()
    last = {key: value for row in map(json.loads, rows) for key, value in row.items()}
    assert f"mIoU {last['sem_seg/mIoU']:.1f}" in said and "of the pixels right" in said
