"""The report: what it says, and that it is one file that asks nobody for anything."""

import base64
import json
import re
import shutil
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import report as tool
import yaml
from detectron2.data import MetadataCatalog
from run_fixtures import write_run

from mpcl.evaluation.runs import find_runs
from mpcl.predict.loading import load_networks
from mpcl.predict.predictor import predict
from mpcl.visualization.report.contents import read_contents
from mpcl.visualization.report.curves import MOST_POINTS, quality_charts, thin_out, training_charts
from mpcl.visualization.report.page import render, write_report
from mpcl.visualization.report.samples import run_lengths
from mpcl.visualization.report.tables import class_tables, differing_settings, duration, summary
from mpcl.visualization.scenes import load_scenes


class Page(HTMLParser):
    """Elements by name, and the data that the script works on."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict]] = []
        self.feed(text)
        data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
        self.data = json.loads(data[1])

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text(report_of_runs) -> str:
    return report_of_runs.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(text) -> Page:
    return Page(text)


def test_the_page_is_one_file_that_may_ask_nobody(text, page):
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert "default-src 'none'" in policy and "http" not in policy
    assert not [s for s in page.all("script") if "src" in s]
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert all(image["src"].startswith("data:image/") for image in page.all("img"))
    assert text.count("plotly.js v") <= 2  # the library is there once (its banner names it)


def test_every_picture_and_chart_has_words_and_headings_do_not_skip(page):
    assert all(image.get("alt") for image in page.all("img"))
    charts = [d for d in page.all("div") if "chart" in d.get("class", "").split()]
    assert len(charts) > 10 and all(d["role"] == "img" and d["aria-label"] for d in charts)
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_it_says_what_was_run(text, trained_runs):
    assert "train_net.py --config-file daformer_gauss" in text
    assert "Settings in which the runs differ" in text and "PROTOTYPES.TYPE" in text
    assert "Changed from" in text and np.__version__ in text
    assert f"<strong>{_last_score(trained_runs['daformer_gauss']):.2f}</strong>" in text


def _last_score(folder) -> float:
    rows = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return next(row["sem_seg/mIoU"] for row in reversed(rows) if "sem_seg/mIoU" in row)


def test_samples_hold_truth_and_predictions_pixel_by_pixel(page, trained_runs):
    shown = page.data["samples"]
    assert len(shown["images"]) == 3
    for index, folder in enumerate(trained_runs.values()):
        networks = load_networks(folder)
        for image, scene in zip(shown["images"], load_scenes(networks.cfg, "tiny_val", 3)):
            size = image["height"], image["width"]
            assert np.array_equal(decode(image["truth"], size), scene.truth)
            predicted = predict(networks.network, scene.record)
            (own,) = (p for p in image["predictions"] if p["run"] == index)
            assert np.array_equal(decode(own["ids"], size), predicted)
            known = scene.truth != 255
            wrong = (predicted != scene.truth)[known].mean()
            assert own["wrong"] == pytest.approx(wrong, abs=1e-4)


def test_a_run_of_other_classes_is_noted_and_left_out(trained_runs, tmp_path):
    odd = tmp_path / "odd"
    shutil.copytree(trained_runs["source_only"], odd)
    MetadataCatalog.get("odd_source").set(stuff_classes=["a", "b", "c", "d"])
    set_in_config(odd, "DATASETS", "TRAIN", ["odd_source"])
    notes = write_report(
        [trained_runs["source_only"], odd], tmp_path / "r.html", images=1, patches=1
    )
    MetadataCatalog.remove("odd_source")
    (note,) = notes
    assert note.startswith("odd: no predictions, it knows a, b, c, d; tiny_val has ground")
    data = Page((tmp_path / "r.html").read_text()).data
    assert [p["run"] for p in data["samples"]["images"][0]["predictions"]] == [0]


def test_a_run_on_a_set_that_nobody_registered_is_noted(trained_runs, tmp_path):
    odd = tmp_path / "odd"
    shutil.copytree(trained_runs["source_only"], odd)
    set_in_config(odd, "DATASETS", "TEST", ["nowhere_val"])
    notes = write_report([odd], tmp_path / "r.html", images=1)
    assert notes == ["No predictions: nowhere_val is no registered data set."]


def set_in_config(folder, section: str, key: str, value: object) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config[section][key] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def decode(text: str, size: tuple[int, int]) -> np.ndarray:
    triples = np.frombuffer(base64.b64decode(text), np.uint8).reshape(-1, 3).astype(int)
    return np.repeat(triples[:, 0], triples[:, 1] * 256 + triples[:, 2]).reshape(size)


@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (300, 500)])
def test_run_lengths_come_back(shape):
    ids = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    assert np.array_equal(decode(run_lengths(ids), shape), ids)
    alike = np.full(shape, 255, np.uint8)  # 150000 pixels are longer than one run can be
    assert np.array_equal(decode(run_lengths(alike), shape), alike)


def test_confusions_scores_and_prototypes_are_of_the_right_run(page, trained_runs):
    confusions = {(c["run"], c["network"]) for c in page.data["confusions"]}
    assert confusions == {(0, "student"), (1, "student"), (1, "teacher")}
    (scores,) = page.data["scores"]
    assert scores["classes"] == ["ground", "hedge", "sky", "box"]
    for one in page.data["confusions"]:
        matrix = np.array(one["matrix"])
        iou = 100 * matrix.diagonal() / (matrix.sum(0) + matrix.sum(1) - matrix.diagonal())
        series = next(
            s["values"]
            for s in scores["series"]
            if (s["run"], s["network"]) == (one["run"], one["network"])
        )
        np.testing.assert_allclose(series, iou, rtol=1e-6)
    assert [d["data-run"] for d in page.all("div") if "gallery" in d.get("class", "")] == ["1"]


LINK = '<a href="https://example.org">road</a>'
NAMES = ["<!--<script>", LINK, "</script><script>alert(2)</script>", "a&lt;b"]


@pytest.fixture
def evil_page(tmp_path) -> Path:
    """Of a run by someone else, whose names are markup and whose numbers are none."""
    scores = {f"sem_seg/IoU-{name}": float("nan") if name == LINK else 50.0 for name in NAMES}
    means = {"sem_seg/mIoU": 40.0, "sem_seg/mDice": 100.0}
    rows = [{"iteration": i, **means, "<b>": 1.0, **scores} for i in (1, 40)]
    folder = write_run(tmp_path / "<img src=x onerror=alert(1)>", rows, **{"<i>": LINK})
    confusion = {"classes": NAMES, "matrix": np.eye(4, dtype=int).tolist(), "seconds": 1.0}
    (folder / "inference/a_val").mkdir(parents=True)
    (folder / "inference/a_val/confusion_student.json").write_text(json.dumps(confusion))
    # Of an evaluation of other weights, which left the run's scores alone:
    confusion["matrix"] = np.ones((4, 4), int).tolist()
    (folder / "inference/a_val/confusion_teacher.json").write_text(json.dumps(confusion))
    session = dict.fromkeys(("started", "device", "processes"), LINK) | {"versions": {LINK: LINK}}
    record = {"sessions": [session | {"command": NAMES, "config_file": LINK, "changed": {}}]}
    (folder / "run.json").write_text(json.dumps(record))
    write_report([folder], tmp_path / "report.html", images=0)
    return tmp_path / "report.html"


def test_names_from_outside_are_text_not_markup(evil_page):
    text = evil_page.read_text()
    found = Page(text)
    assert not found.all("img") and not found.all("i")
    assert [a["href"][0] for a in found.all("a")] == ["#"] * len(found.all("a"))
    assert len(found.all("script")) == 3
    assert [c["network"] for c in found.data["confusions"]] == ["student"]
    assert found.data["confusions"][0]["classes"] == NAMES
    assert "<" not in re.search(r'id="data">(.*?)</script>', text, re.S)[1]


@pytest.mark.parametrize("name", ["model_final.pth", "notes.html", "folder.html"])
def test_nothing_but_a_page_is_replaced(tmp_path, capsys, name):
    folder = write_run(tmp_path / "run", [])
    (folder / "folder.html").mkdir()
    for other in ("model_final.pth", "notes.html"):
        (folder / other).write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        tool.main([str(folder), "--images", "0", "--output", str(folder / name)])
    assert name in capsys.readouterr().err
    assert (folder / "notes.html").read_text() == (folder / "model_final.pth").read_text() == "mine"
    for _ in range(2):  # a page by a page
        tool.main([str(folder), "--images", "0"])


def test_without_checkpoint_or_data_the_rest_is_written(trained_runs, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(trained_runs["daformer_gauss"], folder)
    for file in folder.glob("*.pth"):
        file.unlink()
    tool.main([str(folder), "--images", "1"])
    said = capsys.readouterr().out
    assert "Note: run: no pictures" in said and "report.html" in said
    found = Page((folder / "report.html").read_text())
    assert found.data["samples"] is None and found.data["confusions"]


def test_a_folder_of_runs_stands_for_them(tmp_path):
    runs = [write_run(tmp_path / method / seed, []) for method in "ab" for seed in ("s0", "s1")]
    assert find_runs([tmp_path]) == runs
    assert find_runs([tmp_path / "b", tmp_path / "a/s1"]) == [*runs[2:], runs[1]]


def test_a_folder_without_a_run_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        tool.main([str(tmp_path)])
    assert "holds no run" in capsys.readouterr().err


def test_missing_plotly_is_named_with_its_remedy(trained_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(ValueError, match=r"pip install -e '\.\[report\]'"):
        write_report([trained_runs["source_only"]], tmp_path / "r.html", images=0)
    assert not (tmp_path / "r.html").exists()


# ---- contents, curves, tables


def test_time_counts_every_iteration_once(tmp_path):
    rows = [{"iteration": 9, "time": 2.0}, {"iteration": 29, "time": 1.0}, {"iteration": 40}]
    (run,) = read_contents([write_run(tmp_path / "run", rows)])
    assert run.training_seconds == 10 * 2.0 + 20 * 1.0
    assert run.seconds_per_iteration == pytest.approx(40 / 30)
    assert run.peak_memory is None and run.iterations == 41


def test_scores_and_memory_are_read(tmp_path):
    rows = [
        {"iteration": 19, "sem_seg/mIoU": 30.0, "sem_seg_student/mIoU": 29.0},
        {"iteration": 20, "[metric] max_mem_MiB": 100.0, "gpu/max_mem_MiB": 70.0},
        {"iteration": 40, "sem_seg/mIoU": 40.0, "sem_seg_student/mIoU": 39.0},
    ]
    (run,) = read_contents([write_run(tmp_path / "run", rows)])
    assert run.latest == {"a_val": {"teacher": {"mIoU": 40.0}, "student": {"mIoU": 39.0}}}
    assert run.peak_memory == (70.0, "GPU")
    (chart,) = quality_charts([run])
    teacher, student = chart["traces"]
    assert (teacher["x"], teacher["y"], teacher["dash"]) == ([19, 40], [30.0, 40.0], "solid")
    assert (student["y"], student["dash"]) == ([29.0, 39.0], "dash")


def test_dice_precision_and_recall_have_tables_where_a_run_has_them(tmp_path):
    values = {"IoU": 41.0, "Dice": 58.0, "precision": 62.0, "recall": 55.0}
    rows = [{"iteration": 40, **{f"sem_seg/{kind}-a": v for kind, v in values.items()}}]
    found = class_tables(read_contents([write_run(tmp_path / "new", rows)]), "a_val", ["a"])
    for table, (kind, value) in zip(found, values.items(), strict=True):
        assert table.caption == f"{kind} of each class on a_val, %"
        assert table.rows == [["a", f"{value:.1f}"]]
    earlier = [{"iteration": 40, "sem_seg/IoU-a": 41.0}]
    (table,) = class_tables(read_contents([write_run(tmp_path / "old", earlier)]), "a_val", ["a"])
    assert table.caption == "IoU of each class on a_val, %"


def test_each_headline_has_a_column_and_a_chart_of_its_own(tmp_path):
    plain = [{"iteration": i, "sem_seg/mIoU": 40.0} for i in (20, 40)]
    both = [{**row, "sem_seg/mIoU-two": 50.0} for row in plain]
    subsets = {"CLASS_SUBSETS": [["two", ["a", "b"]]]}
    runs = read_contents(
        [write_run(tmp_path / "one", plain), write_run(tmp_path / "two", both, TEST=subsets)]
    )
    table = summary(runs)
    at = {name: table.headers.index(f"student, {name} %") for name in ("mIoU", "mIoU-two")}
    assert [re.sub("<.*?>", "", row[at["mIoU"]]) for row in table.rows] == ["40.00", "40.00"]
    assert [re.sub("<.*?>", "", row[at["mIoU-two"]]) for row in table.rows] == ["–", "50.00"]
    charts = {chart["title"]: len(chart["traces"]) for chart in quality_charts(runs)}
    assert charts == {"mIoU on a_val": 2, "mIoU-two on a_val": 1}


def test_runs_with_nothing_in_them_are_shown(tmp_path):
    runs = read_contents([write_run(tmp_path / "run", [])])
    assert quality_charts(runs) == [] and training_charts(runs) == {}
    assert "0 of 40" in summary(runs).rows[0]
    assert "No value was logged twice" in render(runs)


def test_scores_and_pictures_come_first_and_what_was_run_last(page):
    sections = [part["id"] for part in page.all("section") if "id" in part]
    assert sections == ["pictures", "classes", "curves", "prototypes", "what"]


def test_a_value_that_was_logged_once_gets_no_chart(tmp_path):
    rows = [{"iteration": i, "lr": 0.1, **({"time": 2.0} if i else {})} for i in range(2)]
    page = Page(render(read_contents([write_run(tmp_path / "run", rows)])))
    assert [chart["id"] for chart in page.data["charts"]] == ["lr"]


def test_settings_of_which_runs_differ(tmp_path):
    one = write_run(tmp_path / "one", [])
    other = write_run(tmp_path / "other", [], SOLVER={"MAX_ITER": 80}, SEED=3)
    (row,) = differing_settings(read_contents([one, other])).rows
    assert row == [f"<code>{text}</code>" for text in ("SOLVER.MAX_ITER", 40, 80)]


def test_curves_are_grouped_and_skip_what_is_not_finite(tmp_path):
    rows = [
        {"iteration": 0, "total_loss": 2.0, "lr": 0.1, "time": 1.0, "prototypes/dead": 0.0},
        {"iteration": 1, "total_loss": float("nan"), "something/else": 3.0, "eta_seconds": 9},
        {"iteration": 2, "total_loss": 1.0},
    ]
    charts = training_charts(read_contents([write_run(tmp_path / "run", rows)]))
    assert {heading: [c["id"] for c in group] for heading, group in charts.items()} == {
        "Losses": ["total_loss"],
        "Learning rate and pseudo-labels": ["lr"],
        "Prototypes": ["prototypes/dead"],
        "Timings and memory": ["time"],
        "More": ["something/else"],
    }
    (trace,) = charts["Losses"][0]["traces"]
    assert (trace["x"], trace["y"]) == ([0, 2], [2.0, 1.0])


def test_long_curves_are_thinned_to_their_last_point():
    points = [(i, float(i)) for i in range(3 * MOST_POINTS + 1)]
    thin = thin_out(points)
    assert len(thin) <= MOST_POINTS and thin[-1] == points[-1]
    assert thin_out(points[:5]) == points[:5]


def test_durations_in_words():
    assert [duration(s) for s in (0, 59.6, 61, 3600, 7325)] == [
        *("0 s", "1 min 00 s", "1 min 01 s", "1 h 00 min", "2 h 02 min")
    ]


@pytest.mark.parametrize("file", ["run.json", "inference/a_val/confusion_teacher.json"])
def test_damaged_files_are_named(tmp_path, file):
    folder = write_run(tmp_path / "run", [])
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("{")
    with pytest.raises(ValueError, match=file.rpartition("/")[2]):
        read_contents([folder])
