"""Streets on disk: its folders, its determinism, its classes, and what its two domains share."""

import hashlib
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "datasets"))

import prepare_streets
from detectron2.data.datasets.builtin_meta import CITYSCAPES_CATEGORIES
from prepare_streets import Parameters, prepare
from streets_drawing.scene import FEATURES, render

SMALL = Parameters(seed=3, height=64, width=128, source=5, target=2, val=2)


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    output = tmp_path_factory.mktemp("serial")
    assert prepare(output, SMALL, workers=1)
    return output


@pytest.fixture(scope="module")
def rendered():
    """{domain: [(image, label)]}: one round of the featured classes, as the default set begins."""
    places = range(len(FEATURES))
    return {d: [render(d, 0, i, 128, 256) for i in places] for d in ("source", "val")}


def test_the_bytes_do_not_depend_on_the_number_of_workers(root, tmp_path):
    prepare(tmp_path, SMALL, workers=2)
    assert digests(tmp_path) == digests(root)


def test_an_image_depends_on_seed_domain_and_index_and_on_nothing_else():
    image, label = render("source", 0, 1, 64, 128)
    again = render("source", 0, 1, 64, 128)
    np.testing.assert_array_equal(image, again[0])
    np.testing.assert_array_equal(label, again[1])
    for other in (("source", 1, 1), ("source", 0, 2), ("target", 0, 1)):
        assert not np.array_equal(image, render(*other, 64, 128)[0])
    assert not np.array_equal(render("target", 0, 0, 64, 128)[1], render("val", 0, 0, 64, 128)[1])


def test_the_folders_are_those_of_cityscapes(root):
    found = {str(p.relative_to(root / "streets")) for p in (root / "streets").rglob("*.*")}
    images = {
        f"leftImg8bit/{domain}/{domain}00/{domain}00_{i:06d}_leftImg8bit.png"
        for domain, size in (("source", 5), ("target", 2), ("val", 2))
        for i in range(size)
    }
    labels = {
        f"gtFine/{domain}/{domain}00/{domain}00_{i:06d}_gtFine_labelTrainIds.png"
        for domain, size in (("source", 5), ("val", 2))
        for i in range(size)
    }
    assert found == images | labels | {"manifest.json"}
    assert [p.name for p in root.iterdir()] == ["streets"]  # no half-made folder is left


def test_labels_are_grey_train_ids_of_the_size_of_their_images(root):
    labels = sorted((root / "streets/gtFine").rglob("*.png"))
    images = [cv2.imread(str(p)) for p in (root / "streets/leftImg8bit").rglob("*.png")]
    assert {image.shape for image in images} == {(64, 128, 3)}
    for path in labels:
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert label.dtype == np.uint8 and label.shape == (64, 128)
        assert set(np.unique(label)) <= {*range(19), 255}


def test_files_hold_what_was_rendered(root):
    image, label = render("source", SMALL.seed, 2, 64, 128)
    name = "source/source00/source00_000002"
    folder = root / "streets"
    on_disk = cv2.imread(str(folder / f"leftImg8bit/{name}_leftImg8bit.png"))
    np.testing.assert_array_equal(on_disk[..., ::-1], image)
    on_disk = cv2.imread(str(folder / f"gtFine/{name}_gtFine_labelTrainIds.png"), 0)
    np.testing.assert_array_equal(on_disk, label)


def test_a_second_run_draws_nothing(root, monkeypatch):
    monkeypatch.setattr(prepare_streets, "draw", lambda task: pytest.fail("drew again"))
    before = digests(root)
    assert not prepare(root, SMALL, workers=1)
    assert digests(root) == before


def test_other_parameters_draw_again_and_say_why(tmp_path, caplog):
    prepare(tmp_path, Parameters(0, 32, 64, 1, 1, 1), workers=1)
    with caplog.at_level("INFO"):
        assert prepare(tmp_path, Parameters(5, 32, 64, 1, 0, 1), workers=1)
    assert "other values of seed, target" in caplog.text
    assert json.loads((tmp_path / "streets/manifest.json").read_text())["seed"] == 5
    assert not (tmp_path / "streets/leftImg8bit/target").exists()


def test_a_link_to_the_set_stays_one(tmp_path):
    few = Parameters(seed=3, height=64, width=128, source=1, target=1, val=1)
    (tmp_path / "disk").mkdir()
    prepare(tmp_path / "disk", few, workers=1)
    (tmp_path / "streets").symlink_to(tmp_path / "disk" / "streets")
    prepare(tmp_path, Parameters(**{**vars(few), "seed": 4}), workers=1)
    assert (tmp_path / "streets").is_symlink()
    assert len(digests(tmp_path / "disk" / "streets")) == len(digests(tmp_path / "streets")) > 3
    assert {path.name for path in tmp_path.iterdir()} == {"disk", "streets"}
    assert {path.name for path in (tmp_path / "disk").iterdir()} == {"streets"}


def test_a_killed_run_leaves_no_data_set_and_the_next_one_cleans_up(tmp_path, monkeypatch):
    tiny, drawn = Parameters(0, 32, 64, 2, 0, 0), prepare_streets.draw

    def killed(task):
        drawn(task)
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare_streets, "draw", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, tiny, workers=1)
    assert not (tmp_path / "streets").exists()
    monkeypatch.setattr(prepare_streets, "draw", drawn)
    assert prepare(tmp_path, tiny, workers=1)
    assert [p.name for p in tmp_path.iterdir()] == ["streets"]


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / "streets").mkdir()
    (tmp_path / "streets" / "precious.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not written by this program"):
        prepare(tmp_path, SMALL, workers=1)
    assert (tmp_path / "streets" / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"height": 8}, {"source": -2}])
def test_senseless_parameters_are_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Parameters(**wrong)


def test_an_unknown_domain_lists_the_known_ones():
    with pytest.raises(ValueError, match="source, target, val"):
        render("moon", 0, 0, 64, 128)


@pytest.mark.parametrize("domain", ["source", "val"])
def test_a_short_run_of_images_shows_all_19_classes(rendered, domain):
    seen = np.unique(np.concatenate([label.ravel() for _, label in rendered[domain]]))
    assert set(range(19)) <= set(seen.tolist())


def frequencies(pairs):
    counts = sum(np.bincount(label.ravel(), minlength=256)[:19] for _, label in pairs)
    return counts / counts.sum()


def test_the_domains_share_their_classes_and_not_their_colours(rendered):
    # Total variation of the class frequencies: 0 for the same, 1 for disjoint ones.
    distance = np.abs(frequencies(rendered["source"]) - frequencies(rendered["val"])).sum() / 2
    assert distance < 0.15
    chroma = {
        d: np.median([np.ptp(image.astype(int), axis=2).mean() for image, _ in pairs])
        for d, pairs in rendered.items()
    }
    assert chroma["val"] < 0.7 * chroma["source"]


def test_only_the_target_camera_sees_its_own_bonnet(rendered):
    bottom = {
        d: np.mean([(label[-1] == 255).mean() for _, label in p]) for d, p in rendered.items()
    }
    assert bottom["source"] < 0.05 and bottom["val"] > 0.5


def test_the_command_line_writes_the_set_and_its_preview(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    sheet = tmp_path / "sheet.png"
    counts = ["--num-source", "2", "--num-target", "0", "--num-val", "2", "--workers", "1"]
    prepare_streets.main(["--size", "32", "64", *counts, "--preview", str(sheet)])
    assert (tmp_path / "streets/manifest.json").exists()
    assert cv2.imread(str(sheet)).shape == (2 * 32, 4 * 64, 3)


def test_the_seed_of_the_command_line_decides_what_is_drawn(tmp_path):
    counts = ["--num-source", "1", "--num-target", "0", "--num-val", "0", "--workers", "1"]
    images = []
    for seed in (3, 4):
        folder = tmp_path / str(seed)
        prepare_streets.main(
            ["--size", "32", "64", *counts, "--seed", str(seed), "--output", str(folder)]
        )
        assert json.loads((folder / "streets/manifest.json").read_text())["seed"] == seed
        images.append(next((folder / "streets/leftImg8bit").rglob("*.png")).read_bytes())
    assert images[0] != images[1]


def test_the_sheet_shows_images_and_labels_of_both_domains_in_their_colours(root):
    sheet, width = prepare_streets.contact_sheet(root / "streets", rows=2), SMALL.width
    palette = np.zeros((256, 3), np.uint8)
    for category in CITYSCAPES_CATEGORIES:
        palette[category["trainId"]] = category["color"]
    for column, domain in enumerate(("source", "val")):
        for row in range(2):
            image, label = render(domain, SMALL.seed, row, SMALL.height, width)
            rows = slice(row * SMALL.height, (row + 1) * SMALL.height)
            pair = sheet[rows, 2 * column * width : 2 * (column + 1) * width]
            assert np.array_equal(pair[:, :width], image)
            assert np.array_equal(pair[:, width:], palette[label])
