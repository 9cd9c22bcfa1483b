import check_data
import numpy as np
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from tiny_files import write_image, write_label

from mpcl.data.sets import custom


@pytest.fixture
def world(tmp_path, capsys):
    """Four good pairs, and a function that runs the tool on them."""
    for i in range(4):
        write_image(tmp_path / f"images/{i}.png", (4, 6))
        write_label(tmp_path / f"labels/{i}.png", [[0] * 6, [1] * 6, [255] * 6, [0] * 6])
    description = {
        "name": "checked",
        "classes": ["ground", "tree", "boat"],
        "absent": ["boat"],
        "splits": {
            "train": {"images": "images", "labels": "labels"},
            "target": {"images": "images"},
        },
    }
    file = tmp_path / "checked.yaml"
    file.write_text(yaml.safe_dump(description, sort_keys=False))

    def run(*names: str, workers: int = 0) -> tuple[int, str]:
        status = check_data.main(["--file", str(file), "--workers", str(workers), *names])
        return status, capsys.readouterr().out

    yield tmp_path, run
    for name in ("checked_sem_seg_train", "checked_images_target"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
            custom._registered.pop(name, None)


@pytest.mark.parametrize("workers", [0, 2])
def test_good_data_passes_with_its_shares(world, workers):
    _, run = world
    status, out = run(workers=workers)
    assert status == 0
    assert "checked_sem_seg_train: 4 images, labelled" in out
    assert "checked_images_target: 4 images, image-only" in out
    assert "6x4 (4)" in out
    assert "RGB (4)" in out
    assert "ignored: 25.00% of all pixels: id 255 (25.00%)" in out
    assert "classes without a pixel: boat" in out
    (ground,) = (line for line in out.splitlines() if line.startswith("ground"))
    assert ground.split()[1:3] == ["66.6667%", "100.0%"]
    assert out.count("no faults") == 2


def test_every_missing_label_is_named_and_hides_no_other_set(world):
    root, run = world
    for i in (1, 3):
        (root / f"labels/{i}.png").unlink()
    status, out = run("checked_sem_seg_train", "checked_images_target")
    assert status == 1
    assert "images/1.png has no label" in out and "images/3.png has no label" in out
    assert "checked_images_target: no faults" in out


def test_all_faults_are_listed_and_not_only_the_first(world):
    root, run = world
    write_label(root / "labels/2.png", np.full((4, 6), 3))
    write_label(root / "labels/0.png", np.full((2, 2), 254))
    status, out = run("checked_sem_seg_train")
    assert status == 1
    assert out.count("FAULT") == 3  # the id and the size of 0, the id of 2
    assert "checked_sem_seg_train: 3 faults" in out


def test_a_rotated_photo_is_compared_as_the_loader_decodes_it(world):
    root, run = world
    exif = Image.Exif()
    exif[0x0112] = 6  # a phone held upright: stored as 6x4, shown as 4x6
    (root / "images/2.png").unlink()
    Image.new("RGB", (4, 6)).save(root / "images/2.jpg", exif=exif)
    assert run("checked_sem_seg_train")[0] == 0


def test_unknown_names_and_broken_descriptions_are_faults(capsys, tmp_path):
    assert check_data.main(["no_such_set"]) == 1
    said = capsys.readouterr().out
    assert "'no_such_set' is no registered data set" in said and "--file takes" in said
    (tmp_path / "bad.yaml").write_text("name: x\n")
    assert check_data.main(["--file", str(tmp_path / "bad.yaml")]) == 1
    assert "bad.yaml: key 'classes'" in capsys.readouterr().out


def test_the_list_holds_the_registered_names(capsys):
    assert check_data.main(["--list"]) == 0
    assert {"gta5_sem_seg_train", "cityscapes_fine_sem_seg_val"} <= set(
        capsys.readouterr().out.split()
    )


def test_no_name_at_all_is_a_usage_error():
    with pytest.raises(SystemExit) as caught:
        check_data.main([])
    assert caught.value.code == 2
