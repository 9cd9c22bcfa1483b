import importlib.util
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from detectron2.data import DatasetCatalog
from detectron2.data.datasets.cityscapes import load_cityscapes_semantic
from PIL import Image
from tiny_files import write_image, write_label, write_palette_label, write_synthia_label

from mpcl.data.decoding import BadFile
from mpcl.data.labels import read_label
from mpcl.data.resizing import keep_aspect_size
from mpcl.data.sets.driving_classes import CITYSCAPES_IDS, SYNTHIA_IDS
from mpcl.data.sets.preparation import (
    Conversion,
    convert_labels,
    read_synthia_label,
    resize_set,
    write_png,
)
from mpcl.utils.ignore_label import IGNORE_LABEL

SCRIPTS = Path(__file__).parents[2] / "datasets"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def run(script: str, monkeypatch, *arguments: str) -> int:
    spec = importlib.util.spec_from_file_location(script, SCRIPTS / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [script, "--workers", "0", *arguments])
    return module.main()


def test_gta5_palettes_become_grey_train_ids(root, monkeypatch):
    write_image(root / "gta5/images/00001.png", (2, 3))
    # road 7, bicycle 33, train 31; 0, 34 and 255 belong to no class
    write_palette_label(root / "gta5/labels/00001.png", [[7, 33, 31], [0, 34, 255]])
    assert run("prepare_gta5", monkeypatch) == 0
    (record,) = DatasetCatalog.get("gta5_sem_seg_train")
    assert Image.open(record["sem_seg_file_name"]).mode == "L"
    np.testing.assert_array_equal(
        read_label(record["sem_seg_file_name"]), [[0, 18, 16], [255, 255, 255]]
    )
    assert (root / "gta5/labels/class_statistics_gta5_sem_seg_train.npz").is_file()


def test_synthia_class_ids_are_the_last_opencv_channel_of_16_bits(root, monkeypatch):
    write_image(root / "synthia/RGB/0000000.png", (2, 4))
    # sky 1, motorcycle 12, wall 21, road 3; 0, 13, 22 and 263 (= 7 in 8 bits) belong to no class
    ids, instances = [[1, 12, 21, 3], [0, 13, 22, 263]], [[3, 3, 3, 3], [1, 1, 1, 1]]
    write_synthia_label(root / "synthia/GT/LABELS/0000000.png", ids, instances)
    assert run("prepare_synthia", monkeypatch) == 0
    (record,) = DatasetCatalog.get("synthia_sem_seg_train")
    np.testing.assert_array_equal(
        read_label(record["sem_seg_file_name"]), [[10, 17, 3, 0], [255, 255, 255, 255]]
    )


def test_an_8_bit_synthia_label_is_refused_by_name(tmp_path):
    file = write_image(tmp_path / "0000001.png")
    with pytest.raises(ValueError, match=r"0000001\.png: found .*uint8, expected a 16-bit PNG"):
        read_synthia_label(str(file), SYNTHIA_IDS)
    file.write_bytes(b"no image")
    with pytest.raises(ValueError, match="no readable image"):
        read_synthia_label(str(file), SYNTHIA_IDS)


def test_cityscapes_label_ids_become_train_ids_that_detectron2_finds(root, monkeypatch):
    for split in ("train", "val"):
        write_image(root / f"cityscapes/leftImg8bit/{split}/ulm/ulm_0_1_leftImg8bit.png", (2, 3))
        stem = f"cityscapes/gtFine/{split}/ulm/ulm_0_1_gtFine"
        write_label(root / f"{stem}_labelIds.png", [[7, 26, 1], [33, 255, 30]])
        write_label(root / f"{stem}_instanceIds.png", [[0]])
        (root / f"{stem}_polygons.json").write_text('{"imgHeight": 2, "imgWidth": 3}')
    assert run("prepare_cityscapes", monkeypatch) == 0
    for split in ("train", "val"):
        (record,) = load_cityscapes_semantic(
            str(root / f"cityscapes/leftImg8bit/{split}"), str(root / f"cityscapes/gtFine/{split}")
        )
        label = read_label(record["sem_seg_file_name"])
        np.testing.assert_array_equal(label, [[0, 13, 255], [18, 255, 255]])


def conversion(folder: Path) -> Conversion:
    return Conversion(folder, ".png", "_labelTrainIds.png", CITYSCAPES_IDS)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_second_run_does_only_what_is_missing(tmp_path, num_workers):
    for i in range(3):
        write_palette_label(tmp_path / f"{i}.png", [[7]])
    assert convert_labels(conversion(tmp_path), num_workers) == 3
    kept = (tmp_path / "0_labelTrainIds.png").stat().st_mtime_ns
    (tmp_path / "1_labelTrainIds.png").unlink()
    assert convert_labels(conversion(tmp_path), num_workers) == 1
    assert (tmp_path / "0_labelTrainIds.png").stat().st_mtime_ns == kept
    assert convert_labels(conversion(tmp_path), num_workers) == 0


def test_train_ids_alone_are_not_taken_for_published_labels(tmp_path):
    write_label(tmp_path / "1_labelTrainIds.png", [[0]])
    with pytest.raises(FileNotFoundError, match=r"holds no published label \*\.png"):
        convert_labels(conversion(tmp_path), 0)


def test_a_grey_copy_of_the_colours_is_no_published_label(tmp_path):
    write_palette_label(tmp_path / "1.png", [[7, 34, 255]])
    write_label(tmp_path / "2.png", [[7, 90]])
    with pytest.raises(BadFile, match=r"2\.png.* holds the ids \[90\], expected 0\.\.34"):
        convert_labels(conversion(tmp_path), 0)
    np.testing.assert_array_equal(
        read_label(tmp_path / "1_labelTrainIds.png"), [[0, IGNORE_LABEL, IGNORE_LABEL]]
    )


def test_an_interrupted_write_leaves_no_file_under_the_final_name(tmp_path, monkeypatch):
    def interrupt(source, target):
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_png(tmp_path / "a.png", np.zeros((2, 2), np.uint8))
    assert not (tmp_path / "a.png").exists()
    assert not list(tmp_path.glob("*.png"))  # what is left is not listed as an image


def noisy_set(root: Path, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    label = rng.integers(0, 19, size).astype(np.uint8)
    write_png(root / "images/1.png", image)
    write_png(root / "labels/1_labelTrainIds.png", label)
    return image, label


def test_resizing_ahead_gives_training_the_very_same_pixels(tmp_path):
    # 26 x 48 in a box of 32 x 18 (width x height): ratio min(32/48, 18/26) = 2/3 -> 17 x 32
    image, label = noisy_set(tmp_path / "full", (26, 48))
    box = (32, 18)
    written = resize_set(
        tmp_path / "full", tmp_path / "small", "_labelTrainIds.png", box, num_workers=0
    )
    assert written == 2
    small = cv2.imread(str(tmp_path / "small/images/1.png"))
    small_label = read_label(tmp_path / "small/labels/1_labelTrainIds.png")
    np.testing.assert_array_equal(
        small, cv2.resize(image, (32, 17), interpolation=cv2.INTER_LINEAR)
    )
    np.testing.assert_array_equal(
        small_label, cv2.resize(label, (32, 17), interpolation=cv2.INTER_NEAREST)
    )
    # training finds nothing left to resize
    assert keep_aspect_size(small.shape[:2], box) == small.shape[:2] == small_label.shape


def test_resizing_continues_and_refuses_another_size(tmp_path):
    noisy_set(tmp_path / "full", (26, 48))
    arguments = (tmp_path / "full", tmp_path / "small", "_labelTrainIds.png")
    resize_set(*arguments, (32, 18), 0)
    (tmp_path / "small/images/1.png").unlink()
    assert resize_set(*arguments, (32, 18), 0) == 1
    with pytest.raises(ValueError, match=r"\(32, 18\).*got \(16, 9\)"):
        resize_set(*arguments, (16, 9), 0)
    assert json.loads((tmp_path / "small/resized_to.json").read_text()) == {"box": [32, 18]}


def test_prepare_gta5_with_resize_makes_the_registered_copy(root, monkeypatch):
    write_image(root / "gta5/images/00001.png", (263, 478))
    write_palette_label(root / "gta5/labels/00001.png", np.full((263, 478), 26))
    assert run("prepare_gta5", monkeypatch, "--resize") == 0
    (record,) = DatasetCatalog.get("gta5_resized_sem_seg_train")
    label = read_label(record["sem_seg_file_name"])
    assert label.shape == keep_aspect_size((263, 478), (1280, 720)) == (704, 1280)
    assert set(np.unique(label)) == {13}


@pytest.mark.parametrize("script", ["prepare_gta5", "prepare_synthia", "prepare_cityscapes"])
def test_missing_data_gives_a_message_and_exit_status_2(root, monkeypatch, capsys, script):
    with pytest.raises(SystemExit) as caught:
        run(script, monkeypatch)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert f"Data sets lie below {root}" in said and "does not exist" in said
    with pytest.raises(FileNotFoundError):
        run(script, monkeypatch, "--debug")


def test_help_shows_the_expected_files_and_where_to_get_them(monkeypatch, capsys):
    with pytest.raises(SystemExit) as caught:
        run("prepare_gta5", monkeypatch, "--help")
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for words in ("gta5/labels/00001.png", "download.visinf.tu-darmstadt.de", "--resize"):
        assert words in shown


@pytest.mark.parametrize("flags", [(), ("--statistics",)])
def test_classes_of_cityscapes_are_counted_on_request(root, monkeypatch, flags):
    counted = []
    # Detectron2 has looked up where Cityscapes lies when it was imported.
    monkeypatch.setattr(
        "mpcl.data.sets.preparation.count_classes", lambda name, workers: counted.append(name)
    )
    for split in ("train", "val"):
        write_label(root / f"cityscapes/gtFine/{split}/ulm/ulm_0_1_gtFine_labelIds.png", [[7]])
    assert run("prepare_cityscapes", monkeypatch, *flags) == 0
    assert counted == ["cityscapes_fine_sem_seg_train"] * len(flags)
