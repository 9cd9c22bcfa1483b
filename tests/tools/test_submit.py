"""Packages for the test servers, from a tiny model on trees in the official layout."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import submit as tool
import torch
from conftest import SMALLEST
from PIL import Image

from mpcl.engine import AdaptationTrainer
from mpcl.predict.loading import load_networks
from mpcl.predict.predictor import predict
from mpcl.predict.submission import check_submission, folders_of, frames_of, write_submission

SIZES = {"fog": (80, 48), "night": (80, 48), "rain": (64, 48), "snow": (80, 64)}  # width, height


@pytest.fixture
def trees(tmp_path, monkeypatch):
    """ACDC and Dark Zurich test images of several sizes; reference images beside them."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    rng = np.random.default_rng(0)
    files = [
        (f"acdc/rgb_anon/{c}/test/GOPR01/{c}01_frame_000{i}47_rgb_anon.png", size)
        for c, size in SIZES.items()
        for i in range(2)
    ]
    files += [("acdc/rgb_anon/fog/test_ref/GOPR01/fog01_frame_000047_rgb_ref_anon.png", (8, 8))]
    files += [
        (f"dark_zurich/rgb_anon/test/night/GOPR0364/GOPR0364_frame_00000{i}_rgb_anon.png", (80, 48))
        for i in (1, 2)
    ]
    for name, (width, height) in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (height, width, 3)).astype(np.uint8)).save(path)
    return tmp_path


@pytest.fixture
def run_folder(tiny_cfg, trees):
    """A run of one iteration with 19 classes, whose student and teacher differ."""
    folder = trees / "run"
    classes = ("MODEL.SEM_SEG_HEAD.NUM_CLASSES", 19, "DATASETS.TEST", ())
    cfg = tiny_cfg("daformer", *SMALLEST, "OUTPUT_DIR", str(folder), *classes)
    trainer = AdaptationTrainer(cfg)
    with torch.no_grad():
        trainer.teacher.model.sem_seg_head.classifier.bias[:] = torch.arange(19.0)
    trainer.checkpointer.save("model_final")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def perfect(dataset: str) -> dict[str, bytes]:
    """A package without faults, written without the package's own code."""
    entries = {}
    for frame, image in frames_of(dataset).items():
        width, height = Image.open(image).size
        ids = (np.arange(width * height) % 19).reshape(height, width).astype(np.uint8)
        for folder in folders_of(dataset):
            wide = np.full(ids.shape, 65535, np.uint16)
            entries[f"{folder}/{frame}.png"] = png(wide if folder == "confidence" else ids)
    return entries


def pack(path: Path, entries: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("dataset", "folders", "images"),
    [
        ("acdc_images_test", {"labelTrainIds"}, 8),
        ("acdc_fog_images_test", {"labelTrainIds"}, 2),
        ("dark_zurich_images_test", {"labelTrainIds", "labelTrainIds_invalid", "confidence"}, 2),
    ],
)
def test_package_holds_the_teachers_train_ids_at_native_size(
    run_folder, trees, capsys, dataset, folders, images
):
    package = trees / "out" / "package.zip"
    arguments = ["--run", str(run_folder), "--dataset", dataset, "--output", str(package)]
    assert tool.main(arguments) == 0
    assert f"{images} images" in capsys.readouterr().out
    assert not list(package.parent.glob("*.partial"))
    teacher = load_networks(run_folder).teacher
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        assert {name.split("/")[0] for name in names} == folders
        assert len(names) == images * len(folders)
        for frame, file in frames_of(dataset).items():
            found = np.array(
                Image.open(io.BytesIO(archive.read(f"labelTrainIds/{frame}_rgb_anon.png")))
            )
            image = np.array(Image.open(file))
            assert found.dtype == np.uint8 and found.shape == image.shape[:2]
            assert found.max() < 19
            if found.shape == (64, 80):  # fed as it is: neither resized nor scaled down
                tensor = torch.from_numpy(image).permute(2, 0, 1)
                record = {"image": tensor, "height": 64, "width": 80}
                assert (found == predict(teacher, record)).mean() > 0.99
            if "confidence" in folders:
                invalid = archive.read(f"labelTrainIds_invalid/{frame}_rgb_anon.png")
                np.testing.assert_array_equal(np.array(Image.open(io.BytesIO(invalid))), found)
                confidence = archive.read(f"confidence/{frame}_rgb_anon.png")
                assert (np.array(Image.open(io.BytesIO(confidence))) == 65535).all()


def test_student_is_an_option_and_weights_may_be_named(run_folder, trees):
    data = ["--dataset", "acdc_night_images_test"]
    weights = ["--weights", str(run_folder / "model_final.pth")]
    one, other, teacher = (trees / f"{name}.zip" for name in ("one", "other", "teacher"))
    config = ["--config-file", str(run_folder / "config.yaml"), *weights]
    assert tool.main([*config, *data, "--student", "--output", str(one)]) == 0
    assert tool.main(["--run", str(run_folder), *data, "--student", "--output", str(other)]) == 0
    assert tool.main(["--run", str(run_folder), *data, "--output", str(teacher)]) == 0
    contents = []
    for package in (one, other, teacher):
        with zipfile.ZipFile(package) as archive:
            contents.append({name: archive.read(name) for name in archive.namelist()})
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: Path(name).name,  # no folder
        lambda name: name.replace(".png", "_gt_labelTrainIds.png"),
        lambda name: f"fog/test/GOPR01/{Path(name).name}",
    ],
)
def test_names_that_begin_with_the_frame_are_accepted_for_acdc(trees, rename):
    entries = {rename(name): content for name, content in perfect("acdc_images_test").items()}
    assert check_submission(pack(trees / "p.zip", entries), "acdc_images_test") == []


def test_what_is_missing_is_listed_with_its_image_and_the_exit_status_is_1(trees, capsys):
    entries = perfect("acdc_images_test")
    del entries["labelTrainIds/fog01_frame_000147.png"]
    package = pack(trees / "p.zip", entries)
    assert tool.main(["--check", str(package), "--dataset", "acdc_images_test"]) == 1
    text = capsys.readouterr().out
    assert "FAULT missing: labelTrainIds/fog01_frame_000147*.png, of " in text
    assert "fog01_frame_000147_rgb_anon.png" in text and "1 faults" in text


def changed(dataset: str, name: str, content: bytes) -> dict[str, bytes]:
    return perfect(dataset) | {name: content}


FRAME = "labelTrainIds/fog01_frame_000047.png"


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        (FRAME, png(np.zeros((48, 79), np.uint8)), "has width x height (79, 48)"),
        (FRAME, png(np.full((48, 80), 19, np.uint8)), "holds the ids [19], expected 0..18"),
        (FRAME, png(np.full((48, 80), 255, np.uint8)), "holds the ids [255]"),
        (FRAME, png(np.zeros((48, 80, 3), np.uint8)), "in mode RGB, expected an 8-bit"),
        (FRAME, png(np.zeros((48, 80), np.uint16)), "in mode I;16, expected an 8-bit"),
        (FRAME, b"no picture", "cannot be decoded"),
        ("labelTrainIds/fog01_frame_000048.png", b"", "belongs to no image of acdc"),
        ("labelTrainIds/fog01_frame_000047_color.png", b"", "has 2 predictions"),
        ("readme.txt", b"", "readme.txt belongs to no image"),
        ("__MACOSX/._fog01_frame_000047.png", b"", "belongs to no image"),
    ],
)
def test_every_fault_of_a_file_is_found(trees, name, content, fault):
    package = pack(trees / "p.zip", changed("acdc_images_test", name, content))
    faults = check_submission(package, "acdc_images_test")
    assert len(faults) == 1 and fault in faults[0]


def test_dark_zurich_needs_its_three_folders(trees):
    entries = perfect("dark_zurich_images_test")
    assert check_submission(pack(trees / "p.zip", entries), "dark_zurich_images_test") == []
    without = {name: c for name, c in entries.items() if not name.startswith("confidence")}
    faults = check_submission(pack(trees / "p.zip", without), "dark_zurich_images_test")
    assert len(faults) == 2 and all(f.startswith("missing: confidence/GOPR0364") for f in faults)
    flat = {
        name.split("/")[1]: c for name, c in entries.items() if name.startswith("labelTrainIds/")
    }
    assert len(check_submission(pack(trees / "p.zip", flat), "dark_zurich_images_test")) == 8
    marked = png(np.full((48, 80), 255, np.uint8))  # an invalid pixel is allowed there only
    entries |= {"labelTrainIds_invalid/GOPR0364_frame_000001.png": marked}
    assert check_submission(pack(trees / "p.zip", entries), "dark_zurich_images_test") == []
    eight = {"confidence/GOPR0364_frame_000001.png": png(np.zeros((48, 80), np.uint8))}
    (fault,) = check_submission(pack(trees / "p.zip", entries | eight), "dark_zurich_images_test")
    assert "expected a 16-bit" in fault


def test_an_interrupt_leaves_the_earlier_package_as_it_was(run_folder, trees):
    package = trees / "p.zip"
    package.write_bytes(b"the earlier one")
    cfg, _, teacher, *_ = load_networks(run_folder)
    images = []

    def interrupt(module, inputs):
        images.append(inputs)
        if len(images) == 2:
            raise KeyboardInterrupt

    teacher.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_submission(package, cfg, teacher, "acdc_images_test")
    assert package.read_bytes() == b"the earlier one"
    assert not list(trees.glob("*.partial"))


def test_a_faulty_package_does_not_replace_the_earlier_one(run_folder, trees, capsys):
    package = trees / "p.zip"
    package.write_bytes(b"the earlier one")
    arguments = ["--run", str(run_folder), "--dataset", "acdc_fog_images_test"]
    assert tool.main([*arguments, "--output", str(package), "--names", "{frame}.txt"]) == 1
    assert package.read_bytes() == b"the earlier one"
    assert "belongs to no image" in capsys.readouterr().out


def test_wrong_arguments_are_named(trees, capsys):
    package = trees / "p.zip"
    for name in ("acdc_images_train", "acdc_mud_images_test", "cityscapes_images_test"):
        with pytest.raises(SystemExit, match="2"):
            tool.main(["--check", str(package), "--dataset", name])
        assert re.search("expected acdc_images_test, .*dark_zurich_im", capsys.readouterr().err)
    with pytest.raises(SystemExit, match="2"):
        tool.main(["--check", str(package), "--dataset", "acdc_images_test"])
    assert "p.zip: No such file" in capsys.readouterr().err
    package.write_bytes(b"no zip")
    assert tool.main(["--check", str(package), "--dataset", "acdc_images_test"]) == 1
    assert "is no readable zip" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tool.main(["--config-file", "x.yaml", "--dataset", "acdc_images_test"])
    with pytest.raises(ValueError, match=r"need \{folder\} in it"):
        write_submission(package, None, None, "dark_zurich_images_test", "{frame}.png")
    for names in ("{folder}/{sequence}_{frame}.png", "{folder}/x.png", "{folder}/{}.png"):
        with pytest.raises(ValueError, match=r"expected \{frame\} in it, and \{folder\} at most"):
            write_submission(package, None, None, "dark_zurich_images_test", names)
