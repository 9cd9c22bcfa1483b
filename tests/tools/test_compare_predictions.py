from pathlib import Path

import compare_predictions as tool
import pytest
from PIL import Image

from mpcl.engine import AdaptationTrainer


def test_finished_runs_are_shown_side_by_side(tiny_cfg, tmp_path):
    for method in ("source_only", "daformer_gauss"):
        folder = tmp_path / method
        cfg = tiny_cfg(method, "OUTPUT_DIR", str(folder), "SOLVER.MAX_ITER", 1)
        trainer = AdaptationTrainer(cfg)
        trainer.train()
        (folder / "config.yaml").write_text(cfg.dump())
    picture = tmp_path / "comparison.png"
    runs = [str(tmp_path / "source_only"), str(tmp_path / "daformer_gauss")]
    tool.main([*runs, "--images", "2", "--output", str(picture)])
    assert Image.open(picture).width == 4 * 96


def test_folder_without_a_run_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        tool.main([str(tmp_path)])
    assert "no config.yaml" in capsys.readouterr().err


def test_runs_are_named_by_as_much_of_their_path_as_tells_them_apart():
    paths = [Path("out/daformer/seed_0"), Path("out/daformer_gauss/seed_0")]
    assert tool.shortest_names(paths) == ["daformer/seed_0", "daformer_gauss/seed_0"]
    assert tool.shortest_names([Path("out/a"), Path("out/b")]) == ["a", "b"]
    with pytest.raises(ValueError, match="named twice"):
        tool.shortest_names([Path("out/a"), Path("out/a")])
