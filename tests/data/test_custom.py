from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from tiny_files import write_image, write_label

from mpcl.data.labels import read_label
from mpcl.data.sets import custom
from mpcl.data.sets.custom import class_colors, register_from_yaml
from mpcl.data.sets.driving_classes import CITYSCAPES_CLASSES, CITYSCAPES_COLORS, CITYSCAPES_IDS
from mpcl.data.statistics import class_statistics

EXAMPLE = Path(__file__).parents[2] / "datasets" / "examples" / "leaves.yaml"


@pytest.fixture(autouse=True)
def clean_catalogs():
    before = set(DatasetCatalog)
    yield
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        custom._registered.pop(name, None)


@pytest.fixture
def world(tmp_path):
    """Two labelled images, one without label, and a description that is right."""
    for key in ("a", "deep/b"):
        write_image(tmp_path / f"shots/{key}.jpg", (2, 3))
        write_label(tmp_path / f"masks/{key}.png", [[0, 1, 1], [7, 255, 0]])
    write_image(tmp_path / "field/c.png")
    return {
        "name": "plants",
        "classes": ["soil", "leaf"],
        "ignore": 7,
        "splits": {"lab": {"images": "shots", "labels": "masks"}, "field": {"images": "field"}},
    }


def write(tmp_path, description) -> Path:
    file = tmp_path / "plants.yaml"
    text = yaml.safe_dump(description, sort_keys=False)
    file.write_text(description if isinstance(description, str) else text, encoding="utf-8")
    return file


def test_splits_become_labelled_and_image_only_sets(tmp_path, world):
    file = write(tmp_path, world)
    names = register_from_yaml(file)
    assert names == ["plants_sem_seg_lab", "plants_images_field"]
    assert register_from_yaml(str(file)) == names  # again: harmless
    (record,) = DatasetCatalog.get("plants_images_field")
    assert record == {"file_name": str(tmp_path / "field/c.png"), "image_id": "c"}
    records = DatasetCatalog.get("plants_sem_seg_lab")
    assert [(r["file_name"], r["sem_seg_file_name"]) for r in records] == [
        (str(tmp_path / f"shots/{k}.jpg"), str(tmp_path / f"masks/{k}.png"))
        for k in ("a", "deep/b")
    ]
    metadata = MetadataCatalog.get("plants_sem_seg_lab")
    assert metadata.stuff_classes == ["soil", "leaf"]
    assert (metadata.ignore_label, metadata.evaluator_type) == (255, "sem_seg")
    label = read_label(records[0]["sem_seg_file_name"], metadata.label_map)
    np.testing.assert_array_equal(label, [[0, 1, 1], [255, 255, 0]])
    np.testing.assert_array_equal(class_statistics("plants_sem_seg_lab").counts, [[2, 2]] * 2)


def test_paths_start_at_the_yaml_file_and_not_at_the_working_directory(
    tmp_path, world, monkeypatch
):
    file = write(tmp_path, world)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    register_from_yaml(Path("..") / file.name)
    assert len(DatasetCatalog.get("plants_sem_seg_lab")) == 2


def test_lists_of_files_pair_line_by_line_in_their_own_order(tmp_path, world):
    write_label(tmp_path / "other/x.png", [[0]])
    write_label(tmp_path / "other/y.png", [[1]])
    (tmp_path / "images.txt").write_text("shots/deep/b.jpg\nshots/a.jpg\n")
    (tmp_path / "labels.txt").write_text("other/x.png\n\nother/y.png\n")
    world["splits"] = {"lab": {"images": "images.txt", "labels": "labels.txt"}}
    register_from_yaml(write(tmp_path, world))
    assert [
        (Path(r["file_name"]).name, Path(r["sem_seg_file_name"]).name)
        for r in DatasetCatalog.get("plants_sem_seg_lab")
    ] == [("b.jpg", "x.png"), ("a.jpg", "y.png")]


def test_suffixes_tell_images_and_labels_of_one_folder_apart(tmp_path, world):
    for key in ("p", "q"):
        write_image(tmp_path / f"both/{key}_rgb.png")
        write_label(tmp_path / f"both/{key}_mask.png", [[0]])
    entry = {"images": "both", "labels": "both"}
    world["splits"] = {"lab": {**entry, "image_suffix": "_rgb.png", "label_suffix": "_mask.png"}}
    register_from_yaml(write(tmp_path, world))
    assert [r["image_id"] for r in DatasetCatalog.get("plants_sem_seg_lab")] == ["p", "q"]


def test_labels_beside_their_images_are_no_images_of_any_split(tmp_path, world):
    for key in ("x", "y"):
        write_image(tmp_path / f"flat/{key}.png", (2, 3))
        write_label(tmp_path / f"flat/{key}_mask.png", [[0, 1, 1], [7, 255, 0]])
    write_image(tmp_path / "flat/z_mask.png")  # there is no z.png: an image of this name
    lab = {"images": "flat", "labels": "flat", "label_suffix": "_mask.png"}
    world["splits"] = {"lab": lab, "field": {"images": "flat"}}
    register_from_yaml(write(tmp_path, world))
    names = [record["image_id"] for record in DatasetCatalog.get("plants_images_field")]
    assert names == ["x", "y", "z_mask"]
    (tmp_path / "flat/z_mask.png").unlink()
    assert len(DatasetCatalog.get("plants_sem_seg_lab")) == 2


def test_labels_in_a_folder_below_the_images_are_no_images(tmp_path, world):
    for key in ("x", "deep/y"):
        write_image(tmp_path / f"target/{key}.png", (2, 3))
    write_image(tmp_path / "target/labelled/z.png", (2, 3))
    write_label(tmp_path / "target/masks/z.png", [[0, 1, 1], [7, 255, 0]])
    test = {"images": "target/labelled", "labels": "target/masks"}
    world["splits"] = {"field": {"images": "target"}, "test": test}
    register_from_yaml(write(tmp_path, world))
    names = [record["image_id"] for record in DatasetCatalog.get("plants_images_field")]
    assert names == ["deep/y", "labelled/z", "x"]
    assert len(DatasetCatalog.get("plants_sem_seg_test")) == 1


def test_an_ending_of_labels_that_was_forgotten_is_guessed(tmp_path, world):
    for key in ("a", "deep/b"):
        (tmp_path / f"masks/{key}.png").rename(tmp_path / f"masks/{key}_mask.png")
    register_from_yaml(write(tmp_path, world))
    with pytest.raises(ValueError, match=r"a_mask\.png.*Did you mean label_suffix: _mask\.png\?"):
        DatasetCatalog.get("plants_sem_seg_lab")


def test_a_label_map_takes_names_indices_and_ignore(tmp_path, world):
    del world["ignore"]
    world["label_map"] = {0: "leaf", 80: 0, 9: "ignore", 10: 255}
    register_from_yaml(write(tmp_path, world))
    label_map = MetadataCatalog.get("plants_sem_seg_lab").label_map
    assert label_map == {0: 1, 80: 0, 9: 255, 10: 255}


@pytest.mark.parametrize("count", [1, 2, 18, 19, 150, 255])
def test_made_colours_differ_and_are_colours(count):
    colors = class_colors([f"c{i}" for i in range(count)])
    assert len(set(colors)) == count
    assert all(isinstance(level, int) and 0 <= level <= 255 for c in colors for level in c)


def test_background_is_grey_and_the_first_others_are_far_apart():
    colors = class_colors(["Background", *(f"c{i}" for i in range(8))])
    assert colors[0] == (128, 128, 128)
    distance = np.linalg.norm(np.subtract.outer(colors, colors).diagonal(0, 1, 3), axis=-1)
    assert distance[~np.eye(9, dtype=bool)].min() > 40


def test_a_name_that_means_something_else_already_is_refused(tmp_path, world):
    register_from_yaml(write(tmp_path, world))
    world["classes"] = ["soil", "root"]
    with pytest.raises(ValueError, match=r"plants_.*names that are free"):
        register_from_yaml(write(tmp_path, world))
    world["name"], world["splits"] = "camvid_day", {"train": world["splits"]["lab"]}
    with pytest.raises(ValueError, match=r"camvid_day_sem_seg_train.*built-in"):
        register_from_yaml(write(tmp_path, world))


def change(description, path, value):
    *parents, last = path.split(".")
    for key in parents:
        description = description[key]
    description[last] = value


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("colour", [], ["'colour'", "colors"]),
        ("splits.lab.image", "x", ["'splits.lab.image'", "images, labels, valid"]),
        ("name", "two words", ["'name'", "two words"]),
        ("name", None, ["'name'", "None"]),
        ("classes", ["vessel"], ["'classes'", "2 to 255", "background"]),
        ("classes", ["x"] * 2, ["'classes'", "'x'", "once"]),
        ("classes", ["soil", False], ["'classes'", "False", "quote"]),
        ("classes", [f"c{i}" for i in range(256)], ["'classes'", "2 to 255"]),
        ("colors", [[0, 0, 0]], ["'colors'", "2 colours"]),
        ("colors", [[0, 0, 0], [0, 0, 256]], ["'colors'", "[0, 0, 256]", "0..255"]),
        ("colors", [[0, 0, 0], [0, 0]], ["'colors'", "[0, 0]"]),
        ("ignore", 256, ["'ignore'", "256", "0..255"]),
        ("ignore", 1, ["'ignore'", "'leaf'"]),
        ("label_map", {0: "stem"}, ["'label_map.0'", "'stem'", "soil, leaf"]),
        ("label_map", {0: 2}, ["'label_map.0'", "2", "below 2"]),
        ("label_map", {0: True}, ["'label_map.0'", "True"]),
        ("label_map", {300: 0}, ["'label_map'", "300", "0..255"]),
        ("label_map", {7: 0}, ["'label_map'", "7", "ignore"]),
        ("splits", {}, ["'splits'", "names of splits"]),
        ("splits.lab.images", 3, ["'splits.lab.images'", "3", "folder"]),
        ("splits.lab.label_suffix", 3, ["'splits.lab.label_suffix'", "3"]),
        ("splits.lab.ignore", 7, ["'splits.lab.ignore'", "whole file"]),
    ],
)
def test_a_mistake_names_file_key_value_and_what_was_expected(tmp_path, world, path, value, said):
    change(world, path, value)
    file = write(tmp_path, world)
    with pytest.raises(ValueError) as caught:
        register_from_yaml(file)
    for words in (str(file), "expected", *said):
        assert words in str(caught.value)
    assert "plants_sem_seg_lab" not in DatasetCatalog


def test_a_key_given_twice_is_refused(tmp_path):
    text = "name: a\nclasses: [x]\nsplits:\n  one: {images: .}\n  one: {images: .}\n"
    with pytest.raises(ValueError, match=r"line 4 has a key twice: one"):
        register_from_yaml(write(tmp_path, text))


@pytest.mark.parametrize("text", ["classes: [a", "- a list", ""])
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, text):
    with pytest.raises(ValueError, match=r"plants\.yaml"):
        register_from_yaml(write(tmp_path, text))
    with pytest.raises(FileNotFoundError, match=r"none\.yaml does not exist"):
        register_from_yaml(tmp_path / "none.yaml")


def load_lab(tmp_path, world):
    register_from_yaml(write(tmp_path, world))
    return DatasetCatalog.get("plants_sem_seg_lab")


def test_faulty_lists_are_refused(tmp_path, world):
    world["splits"] = {"lab": {"images": "images.txt", "labels": "labels.txt"}}
    (tmp_path / "images.txt").write_text("shots/a.jpg\nshots/deep/b.jpg\n")
    (tmp_path / "labels.txt").write_text("masks/a.png\n")
    with pytest.raises(ValueError, match="2 images and 1 labels"):
        load_lab(tmp_path, world)
    (tmp_path / "labels.txt").write_text("masks/a.png\nmasks/none.png\n")
    with pytest.raises(FileNotFoundError, match=r"labels\.txt names 1 missing files.*none\.png"):
        DatasetCatalog.get("plants_sem_seg_lab")
    (tmp_path / "labels.txt").write_text("masks/a.png\n./masks//a.png\n")
    with pytest.raises(ValueError, match=r"labels\.txt names a file twice"):
        DatasetCatalog.get("plants_sem_seg_lab")
    world["name"], world["splits"]["lab"]["labels"] = "plants2", "masks"
    with pytest.raises(ValueError, match="two folders, or two lists"):
        DatasetCatalog.get(register_from_yaml(write(tmp_path, world))[0])


def test_the_example_of_archives_has_the_ids_and_colours_of_cityscapes():
    name, *_ = register_from_yaml(EXAMPLE.with_name("driving_zips.yaml"))
    metadata = MetadataCatalog.get(name)
    assert metadata.stuff_classes == CITYSCAPES_CLASSES
    assert metadata.stuff_colors == CITYSCAPES_COLORS
    assert metadata.label_map == {raw: i for raw, i in CITYSCAPES_IDS.items() if i < 19}
    with pytest.raises(FileNotFoundError, match=r"'splits\.gta5': images .*01_images\.zip"):
        DatasetCatalog.get(name)


def test_places_of_a_split_are_pairs(tmp_path, world):
    write_image(tmp_path / "more/c.png", (2, 3))
    write_label(tmp_path / "more_masks/c.png", [[0, 1, 1], [7, 255, 0]])
    world["splits"]["lab"] = {"images": ["shots", "more"], "labels": ["masks", "more_masks"]}
    assert [Path(r["sem_seg_file_name"]).name for r in load_lab(tmp_path, world)] == [
        *("a.png", "b.png", "c.png")
    ]
    world["name"], world["splits"]["lab"]["labels"] = "plants2", "masks"
    with pytest.raises(ValueError, match=r"splits\.lab\.labels.*one for each of the 2 places"):
        register_from_yaml(write(tmp_path, world))


def test_the_worked_example_registers_once_its_folders_exist(tmp_path):
    for split in ("greenhouse", "field_test"):
        write_image(tmp_path / f"leaves/{split}/images/a01.jpg", (1, 6))
        write_label(tmp_path / f"leaves/{split}/masks/a01.png", [[0, 80, 160, 240, 255, 33]])
    write_image(tmp_path / "leaves/field/images/p7/x12.jpg")
    (tmp_path / "examples").mkdir()
    file = tmp_path / "examples" / EXAMPLE.name
    file.write_text(EXAMPLE.read_text(encoding="utf-8"), encoding="utf-8")
    names = register_from_yaml(file)
    assert names == [
        "leaves_sem_seg_greenhouse",
        "leaves_images_field",
        "leaves_sem_seg_field_test",
    ]
    (record,) = DatasetCatalog.get("leaves_sem_seg_greenhouse")
    label = read_label(record["sem_seg_file_name"], MetadataCatalog.get(names[0]).label_map)
    np.testing.assert_array_equal(label, [[0, 1, 2, 3, 255, 255]])
