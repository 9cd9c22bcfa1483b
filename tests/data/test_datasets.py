from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_files import write_image, write_label

from mpcl.data.labels import read_label
from mpcl.data.sets.driving_classes import CITYSCAPES_IDS, SYNTHIA_IDS
from mpcl.data.sets.registration import load_records, register_camvid, registered_names


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return tmp_path


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def pairs(root: Path, name: str) -> list[tuple[str, str | None]]:
    below = len(str(root)) + 1
    return [
        (r["file_name"][below:], (r.get("sem_seg_file_name") or "")[below:] or None)
        for r in DatasetCatalog.get(name)
    ]


CONDITIONS = ("fog", "night", "rain", "snow")


def anonymised(*places: str, labelled: bool) -> dict[str, str | None]:
    """Of ACDC and Dark Zurich: data set/{}/the rest of the path."""
    images = [place.format("rgb_anon") + "_rgb_anon.png" for place in places]
    labels = [place.format("gt") + "_gt_labelTrainIds.png" for place in places]
    return dict(zip(images, labels if labelled else [None] * len(images)))


def cityscapes_like(place: str, labelled: bool) -> dict[str, str | None]:
    label = place.format("gtFine") + "_gtFine_labelTrainIds.png"
    return {place.format("leftImg8bit") + "_leftImg8bit.png": label if labelled else None}


# name -> image -> label (None: image-only), in the layout of the official downloads
TRAIN, VAL, TEST = (
    [f"acdc/{{}}/{c}/{split}/GOPR0475/{c}_1" for c in CONDITIONS]
    for split in ("train", "val", "test")
)
ZURICH = "dark_zurich/{}/%s/night/GOPR0351/GOPR0351_frame_000159"
OFFICIAL = {
    "gta5_sem_seg_train": {
        "gta5/images/00001.png": "gta5/labels/00001_labelTrainIds.png",
        "gta5/images/00002.png": "gta5/labels/00002_labelTrainIds.png",
    },
    "gta5_resized_sem_seg_train": {
        "gta5_resized/images/00001.png": "gta5_resized/labels/00001_labelTrainIds.png"
    },
    "synthia_sem_seg_train": {
        "synthia/RGB/0000000.png": "synthia/GT/LABELS/0000000_labelTrainIds.png"
    },
    "cityscapes_images_train": cityscapes_like("cityscapes/{}/train/ulm/ulm_000000_000019", False),
    "acdc_sem_seg_train": anonymised(*TRAIN, labelled=True),
    "acdc_images_train": anonymised(*TRAIN, labelled=False),
    "acdc_sem_seg_val": anonymised(*VAL, labelled=True),
    "acdc_night_sem_seg_val": anonymised(VAL[1], labelled=True),
    "acdc_images_test": anonymised(*TEST, labelled=False),
    "acdc_snow_images_test": anonymised(TEST[3], labelled=False),
    "dark_zurich_images_train": anonymised(ZURICH % "train", labelled=False),
    "dark_zurich_sem_seg_val": anonymised(ZURICH % "val", labelled=True),
    "dark_zurich_images_test": anonymised(ZURICH % "test", labelled=False),
    "camvid_day_sem_seg_train": {
        "CamVid/train/0006R0_f00930.png": "CamVid/trainannot/0006R0_f00930.png"
    },
    "camvid_dusk_images_train": {"CamVid/train/0001TP_006690.png": None},
    "camvid_dusk_sem_seg_val": {
        "CamVid/test/0001TP_008550.png": "CamVid/testannot/0001TP_008550.png"
    },
    "streets_source_sem_seg_train": cityscapes_like("streets/{}/source/00/a", True),
    "streets_target_images_train": cityscapes_like("streets/{}/target/00/b", False),
    "streets_target_sem_seg_val": cityscapes_like("streets/{}/val/00/c", True),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_set_is_found_in_the_layout_of_its_official_download(root, name):
    for one in OFFICIAL.values():  # all trees, so that a set that takes too much would show
        touch(root, *one, *filter(None, one.values()))
    touch(root, "gta5/labels/00001.png", "synthia/GT/LABELS/0000000.png")  # published labels
    touch(
        root, "acdc/rgb_anon/fog/train_ref/GOPR0475/x_rgb_ref_anon.png", "gta5/images/._00001.png"
    )
    touch(root, "dark_zurich/rgb_anon/train/day/G/y_rgb_anon.png")
    touch(root, "cityscapes/leftImg8bit/val/bonn/z_leftImg8bit.png")
    # Labels of targets, which must stay out of reach.
    touch(root, "CamVid/trainannot/0001TP_006690.png")
    touch(root, "cityscapes/gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png")
    touch(root, "streets/gtFine/target/00/b_gtFine_labelTrainIds.png")
    assert pairs(root, name) == list(OFFICIAL[name].items())
    if "_images_" in name:
        assert all(set(record) == {"file_name", "image_id"} for record in DatasetCatalog.get(name))


def test_cityscapes_records_come_sorted_whatever_the_file_system_says(monkeypatch):
    name = "test_unsorted_sem_seg_train"
    DatasetCatalog.register(name, lambda: [{"file_name": n} for n in ("b", "c", "a")])
    try:
        assert [r["file_name"] for r in load_records(name)] == list("abc")
    finally:
        DatasetCatalog.remove(name)


def test_every_set_is_described_for_evaluator_and_visualizer():
    assert {"cityscapes_fine_sem_seg_train", "cityscapes_fine_sem_seg_val", *OFFICIAL} <= set(
        registered_names()
    )
    for name in OFFICIAL:
        metadata = MetadataCatalog.get(name)
        assert metadata.ignore_label == 255
        assert metadata.evaluator_type == "sem_seg"
        assert len(metadata.stuff_classes) == (11 if name.startswith("camvid") else 19)
        assert len(set(metadata.stuff_colors)) == len(metadata.stuff_classes)
    assert len(MetadataCatalog.get("cityscapes_fine_sem_seg_val").stuff_colors) == 19


def test_the_parts_of_acdc_are_its_conditions(root):
    parts = MetadataCatalog.get("acdc_sem_seg_val").parts
    touch(root, *OFFICIAL["acdc_sem_seg_val"], *OFFICIAL["acdc_sem_seg_val"].values())
    files = [record["file_name"] for part in parts for record in DatasetCatalog.get(part)]
    assert files == [record["file_name"] for record in DatasetCatalog.get("acdc_sem_seg_val")]
    assert parts == tuple(f"acdc_{c}_sem_seg_val" for c in CONDITIONS)


def test_the_label_maps_are_those_of_the_published_ids():
    classes = MetadataCatalog.get("gta5_sem_seg_train").stuff_classes
    assert [classes[i] for i in (0, 5, 11, 18)] == ["road", "pole", "person", "bicycle"]
    assert {classes[t]: i for i, t in CITYSCAPES_IDS.items()}["motorcycle"] == 32
    assert sorted(CITYSCAPES_IDS.values()) == sorted(SYNTHIA_IDS.values()) == list(range(19))
    # SYNTHIA's own list of ids; 0, 13, 14 and 22 have no counterpart
    synthia = {1: "sky", 2: "building", 3: "road", 4: "sidewalk", 5: "fence", 6: "vegetation"}
    synthia |= {7: "pole", 8: "car", 9: "traffic sign", 10: "person", 11: "bicycle"}
    synthia |= {12: "motorcycle", 15: "traffic light", 16: "terrain", 17: "rider"}
    synthia |= {18: "truck", 19: "bus", 20: "train", 21: "wall"}
    assert {raw: classes[train_id] for raw, train_id in SYNTHIA_IDS.items()} == synthia


def test_the_root_is_looked_up_when_a_set_is_used(tmp_path, monkeypatch):
    for folder in ("one", "two"):
        touch(tmp_path / folder, "CamVid/train/0001TP_1.png")
        monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / folder))
        (record,) = DatasetCatalog.get("camvid_dusk_images_train")
        assert record["file_name"] == str(tmp_path / folder / "CamVid/train/0001TP_1.png")


def test_a_missing_folder_is_named_with_the_expected_tree_and_the_root(root):
    with pytest.raises(FileNotFoundError) as caught:
        DatasetCatalog.get("acdc_images_train")
    message = str(caught.value)
    assert f"folder {root}/acdc/rgb_anon/fog/train does not exist" in message
    assert "acdc/rgb_anon/snow/train/**/*_rgb_anon.png" in message
    assert f"DETECTRON2_DATASETS is '{root}'" in message
    assert "datasets/README.md" in message


def test_missing_train_ids_name_the_command_that_makes_them(root):
    touch(root, "gta5/images/00001.png", "gta5/images/00002.png", "gta5/labels/00001.png")
    with pytest.raises(FileNotFoundError, match=r"python datasets/prepare_gta5\.py"):
        DatasetCatalog.get("gta5_sem_seg_train")
    touch(root, "gta5/labels/00001_labelTrainIds.png")
    with pytest.raises(
        FileNotFoundError, match=r"1 of 2 images, for instance .*00002\.png"
    ) as error:
        DatasetCatalog.get("gta5_sem_seg_train")
    assert error.value.images == [str(root / "gta5/images/00002.png")]


def test_registering_touches_no_file(root, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a file was looked up")

    for name in ("walk", "stat", "scandir", "listdir"):
        monkeypatch.setattr(f"os.{name}", refuse)
    name = "test_lazy_images_train"
    try:
        register_camvid(name, ["0001TP"], "train", labelled=False)
        # Python 3.10's pathlib keeps the real os.stat, which does not find the folder.
        with pytest.raises((AssertionError, FileNotFoundError), match=r"looked up|does not exist"):
            DatasetCatalog.get(name)
    finally:
        monkeypatch.undo()
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_camvid_takes_any_sequences_and_maps_unlabelled_to_ignored(root):
    for sequence in ("0006R0", "0016E5", "Seq05VD", "0001TP"):
        write_image(root / f"CamVid/train/{sequence}_1.png", (1, 3))
        write_label(root / f"CamVid/trainannot/{sequence}_1.png", [[0, 10, 11]])
    name = "test_camvid_sem_seg_train"
    register_camvid(name, ["0016E5", "Seq05VD"], "train", labelled=True)
    try:
        records = DatasetCatalog.get(name)
        assert [r["image_id"] for r in records] == ["0016E5_1", "Seq05VD_1"]
        label_map = MetadataCatalog.get(name).label_map
        label = read_label(records[0]["sem_seg_file_name"], label_map)
        np.testing.assert_array_equal(label, [[0, 10, 255]])
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    ("sequences", "split"), [(["0006R0"], "training"), ([], "train"), ("0006R0", "train")]
)
def test_camvid_refuses_what_it_does_not_know(sequences, split):
    with pytest.raises(ValueError, match=r"split expects|sequences expects"):
        register_camvid("test_camvid_wrong", sequences, split, labelled=True)
    assert "test_camvid_wrong" not in DatasetCatalog
