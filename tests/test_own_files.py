"""People's own files, as programs and file servers leave them: nothing is wrong in silence.

What must be refused is a row of ``test_bad_input.py``; here is what must be told, or just work.
"""

import json
import os
import shutil
import zipfile
from itertools import islice

import check_data
import export
import numpy as np
import predict
import pytest
import torch
import train_net
from conftest import COLORS, SMALLEST
from detectron2.data import DatasetCatalog, MetadataCatalog
from mistakes import CLASSES, World, forget
from PIL import Image

import mpcl
from mpcl.config import get_cfg_from
from mpcl.config.notes import distance_notes
from mpcl.data.build import build_paired_loader
from mpcl.data.files import list_files
from mpcl.data.labels import read_label
from mpcl.data.sets.custom import register_from_yaml
from mpcl.data.sets.label_ids import LabelIds
from mpcl.engine import job
from mpcl.evaluation.evaluator import SegmentationEvaluator

pytest_plugins = ["mistakes"]

NO_MARGINS = ("SELF_TRAINING.IGNORE_TOP", "0.0", "SELF_TRAINING.IGNORE_BOTTOM", "0.0")


def checked(world: World, capsys, status: int = 0) -> str:
    """What ``check_data.py --file`` prints; asserts its exit status."""
    world.command()
    found = check_data.main(["--file", str(world.root / "world.yaml"), "--workers", "2"])
    said = capsys.readouterr().out
    assert found == status, said
    return said


def batches(world: World, count: int, *opts: str) -> list[dict]:
    """The first batches of a training."""
    args = train_net.parse_args(world.command(*opts))
    return list(islice(build_paired_loader(get_cfg_from(args.config_file, args.opts)), count))


def masks(world: World, change, splits=("source", "val")) -> None:
    """Replaces the labels of splits by ``change(label)``."""
    for split in splits:
        for i in range(2):
            file = f"{split}_labels/{i}.png"
            world.save(change(world.pixels(file)), file)


def ink(label: np.ndarray) -> np.ndarray:
    """0 and 255, as a drawing program saves a mask."""
    return np.where((label == 1) | (label == 3), 255, 0).astype(np.uint8)


def smooth(label: np.ndarray) -> np.ndarray:
    image = Image.fromarray(ink(label))
    return np.array(image.resize((192, 128), Image.Resampling.BICUBIC).resize(image.size))


MISREAD = {
    "a typo in the map": (
        ink,
        {0: "background", 225: "vessel"},
        "no class but background has a pixel",
        "Did you mean label_map: {0: background, 255: vessel}?",
    ),
    "one bit, and a map of 255": (
        lambda label: ink(label) > 0,
        {0: "background", 255: "vessel"},
        "no class but background has a pixel",
        "Did you mean label_map: {0: background, 1: vessel}?",
    ),
    "smooth edges": (
        smooth,
        {0: "background", 255: "vessel"},
        "different ids are not named by label_map",
        "nearest",
    ),
    "everything ignored": (
        lambda label: np.full_like(label, 255),
        None,
        "no class has a pixel",
        "id 255 (100.00%)",
    ),
}


@pytest.mark.parametrize(("change", "label_map", "fault", "hint"), MISREAD.values(), ids=MISREAD)
def test_masks_that_are_read_as_something_else_are_faults(
    world, capsys, change, label_map, fault, hint
):
    world.description["classes"] = ["background", "vessel"]
    if label_map:
        world.description["label_map"] = label_map
    masks(world, change)
    told = checked(world, capsys, status=1)
    assert fault in told and hint in told, told


@pytest.mark.parametrize(
    ("ids", "label_map", "suggested"),
    [
        ((0, 1, 255), None, ""),  # 255 is ignored, as usual, and box has no pixel
        ((0, 100, 255), None, "{0: ground, 100: hedge, 255: box}"),
        ((0, 1, 9), {0: 0, 1: 1, 9: 255, 7: 2}, ""),  # declared to be ignored
    ],
)
def test_an_id_that_is_ignored_on_purpose_is_not_suggested_as_a_class(ids, label_map, suggested):
    pixels = np.bincount(np.repeat(ids, 100), minlength=256)
    (fault,) = LabelIds(pixels, ["ground", "hedge", "box"], label_map, ()).faults()
    assert fault.endswith(f"label_map: {suggested}?") if suggested else "mean" not in fault[80:]


def test_every_id_that_is_ignored_is_named_with_its_share(world, capsys):
    world.description["label_map"] = {0: "ground", 1: "hedge", 2: "sky", 3: "box", 9: "ignore"}

    def change(label):
        label[:2], label[2:3] = 9, 77  # 2 and 1 of 64 rows; 255 covers 16 of 6144 pixels
        return label

    masks(world, change, ["source"])
    told = checked(world, capsys)
    assert "id 9 (3.12%), id 77 (1.56%, not named), id 255 (0.26%, not named)" in told


def test_a_class_without_a_pixel_is_a_fault_unless_it_is_declared(world, capsys):
    masks(world, lambda label: np.where(label == 3, 0, label))
    told = checked(world, capsys, status=1)
    assert told.count("no pixel has the class box") == 2 and "absent: [box]" in told
    world.name = world.description["name"] = world.name + "b"
    for split in ("source", "val"):
        world.description["splits"][split]["absent"] = ["box"]
    assert "classes without a pixel: box" in checked(world, capsys)
    assert job.check(train_net.parse_args(world.command())) == []


@pytest.mark.parametrize("mode", ["RGBA", "P"])
def test_colour_masks_train_as_their_ids_do(world, capsys, mode):
    expected = world.pixels("source_labels/1.png")
    palette = np.zeros((256, 3), np.uint8)
    palette[:4] = COLORS["source"]
    for split in ("source", "val"):
        for i in range(2):
            file = world.root / f"{split}_labels/{i}.png"
            image = Image.fromarray(world.pixels(file) ^ 7)  # no id is a class
            image.putpalette(palette[np.arange(256) ^ 7].tobytes())
            image.convert(mode).save(file)
    names = world.description["classes"]
    colors = {name: list(color) for name, color in zip(names, COLORS["source"])}
    world.description["label_colors"] = {**colors, "ignore": [[0, 0, 0], [1, 2, 3]]}
    assert checked(world, capsys).count("no faults") == 3
    label_map = MetadataCatalog.get(f"{world.name}_sem_seg_source").label_map
    found = read_label(world.root / "source_labels/1.png", label_map)
    np.testing.assert_array_equal(found, expected)
    train_net.cli(world.command(*SMALLEST, "SOLVER.MAX_ITER", "2", "VIS_PERIOD", "0"))


def test_target_pixels_without_data_get_no_weight_in_training(world):
    for i in range(2):
        image = world.pixels(f"target/{i}.png").clip(1)
        image[:, :32] = 0
        world.save(image, f"target/{i}.png")
    world.description["splits"]["target"]["nodata"] = [0, 0, 0]
    (batch,) = batches(world, 1, "INPUT.RANDOM_FLIP", "none", *NO_MARGINS)
    for record in batch["target"]:
        assert torch.equal(record["valid"], record["image"].any(0)) and not record["valid"].all()
    train_net.cli(world.command(*SMALLEST, "SOLVER.MAX_ITER", "2", "VIS_PERIOD", "0"))


def test_hidden_and_foreign_folders_and_links_that_lead_back_are_left_out(world, capsys, caplog):
    for folder in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "deep/.thumbs"):
        world.save(world.pixels("target/0.png"), f"target/{folder}/0.png")
    world.save(world.pixels("target/0.png"), "target/._0.png")
    (world.root / "target/Thumbs.db").write_bytes(b"x")
    for link in ("again", "more"):
        os.symlink(world.root / "target", world.root / "target" / link)
    os.symlink("loop", world.root / "target/loop")
    world.save(world.pixels("target/0.png"), "target/deep/2.gif")
    with caplog.at_level("WARNING"):
        told = checked(world, capsys)
    assert f"{world.name}_images_target: 2 images" in told
    assert f"Left out of folder {world.root / 'target'}: 7 hidden or foreign files" in caplog.text
    assert "1 videos, or images of other formats, such as" in caplog.text


def test_a_folder_that_cannot_be_listed_is_no_empty_one(world, capsys, monkeypatch):
    world.save(world.pixels("target/0.png"), "target/locked/0.png")
    scandir = os.scandir

    def refuse(path):  # root, whom tests may run as, is refused nothing
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match="locked"):
        list_files(world.root / "target", (".png",))


def test_a_mark_in_front_of_a_list_or_a_description_does_no_harm(world, capsys):
    (world.root / "list.txt").write_text("target/0.png\ntarget/1.png\n", encoding="utf-8-sig")
    world.description["splits"]["target"]["images"] = "list.txt"
    world.command()
    file = world.root / "world.yaml"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert check_data.main(["--file", str(file)]) == 0


def notes(world: World, *opts: str) -> list[str]:
    return job.check(train_net.parse_args(world.command(*opts)))


def test_strong_and_uneven_resizing_is_noted_by_factor(world):
    # images are 96 x 64
    (note,) = notes(world, "INPUT.TARGET_SIZE", "(192,128)")
    assert f"{world.name}_sem_seg_source 1.00 (1.00 to 1.00)" in note
    assert f"{world.name}_images_target 2.00 (2.00 to 2.00)" in note and "different" in note
    strong, _ = notes(world, "INPUT.TARGET_SIZE", "(288,192)")
    assert "more than twice" in strong and "3.00" in strong
    assert notes(world, "INPUT.SOURCE_SIZE", "(132,88)") == []  # 1.375 and 1


def test_images_that_are_tested_and_trained_on_are_noted(world):
    places = world.description["splits"]
    places["val"] = {**places["val"], "images": "source", "labels": "source_labels"}
    (note,) = notes(world)
    assert f"2 of the 2 images of {world.name}_sem_seg_val are trained on with their labels" in note


def test_an_encoder_that_is_named_and_not_built_is_noted(world):
    (note,) = notes(world, "MODEL.TIMM.NAME", "resnet18")
    assert "MODEL.TIMM.NAME resnet18 is not read: MODEL.BACKBONE.NAME is MixTransformer" in note


def test_classes_of_the_feature_distance_that_are_not_cityscapes_are_named():
    name = "twenty_sem_seg_train"
    DatasetCatalog.register(name, list)
    MetadataCatalog.get(name).set(stuff_classes=[f"leaf {i}" for i in range(20)])
    try:
        cfg = get_cfg_from("", ["DATASETS.TRAIN", f"({name!r},)"])
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, distance = 20, cfg.SELF_TRAINING.FEATURE_DISTANCE
        assert distance_notes(cfg) == []
        distance.WEIGHT = 0.005
        (note,) = distance_notes(cfg)
        assert "features of leaf 6, leaf 7, leaf 11" in note
        distance.CLASSES = (1, 2)
        assert distance_notes(cfg) == []
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_a_large_set_is_judged_by_all_its_labels_before_training(world, capsys, monkeypatch):
    # Of a set that is not seen whole, a class may lack by chance; the count of all labels decides.
    masks(world, lambda label: np.where(label == 3, 0, label), ["source"])
    monkeypatch.setattr("mpcl.config.set_checks.sample", lambda records, *_: records[:1])
    assert notes(world) == []
    with pytest.raises(SystemExit) as end:
        train_net.cli(world.command(*SMALLEST))
    assert end.value.code == 2
    assert "has a pixel of box; tools/check_data.py tells" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda label: np.full_like(label, 200), r"holds the ids \[200\]"),
        (lambda label: label[:, :1].copy(), r"\(64, 1\), but its image .*\(64, 96\)"),
    ],
    ids=["an unknown id", "another size"],
)
def test_evaluation_refuses_a_label_by_file_as_training_does(world, change, said):
    masks(world, change, ["val"])
    world.command()
    *_, name = register_from_yaml(world.root / "world.yaml")
    evaluator = SegmentationEvaluator(name)
    evaluator.reset()
    record = {"file_name": str(world.root / "val/1.png")}
    with pytest.raises(ValueError, match=rf"val_labels/1\.png .*{said}"):
        evaluator.process([record], [{"sem_seg": torch.zeros(4, 64, 96)}])
    with pytest.raises(ValueError, match=rf"DATASETS\.TEST.*val_labels/0\.png .*{said}"):
        notes(world)


def test_sizes_of_all_test_labels_are_compared_before_training(world, monkeypatch):
    file = "val_labels/1.png"
    world.save(world.pixels(file)[:-1], file)
    looked_at = lambda records, at_most=1: records[:at_most]  # noqa: E731
    monkeypatch.setattr("mpcl.config.set_checks.sample", looked_at)
    with pytest.raises(ValueError, match=r"val_labels/1\.png has height x width \(63, 96\)"):
        notes(world)


@pytest.mark.parametrize(("mode", "said"), [("CMYK", "mode 'CMYK'"), ("I;16", "mode 'I;16")])
def test_headers_of_all_images_are_looked_at_before_training(world, monkeypatch, mode, said):
    suffix = "jpg" if mode == "CMYK" else "png"
    (world.root / "target/1.png").unlink()
    pixels = np.zeros((64, 96, 3), np.uint8) if mode == "CMYK" else np.zeros((64, 96), np.uint16)
    world.save(pixels, f"target/1.{suffix}", mode if mode == "CMYK" else None)
    looked_at = lambda records, at_most=1: records[:at_most]  # noqa: E731
    monkeypatch.setattr("mpcl.config.set_checks.sample", looked_at)
    with pytest.raises(ValueError, match=rf"target/1\.{suffix} is in {said}"):
        notes(world)
    assert notes(world, "DATALOADER.ON_BAD_FILE", "skip") == []


def test_labelled_images_that_exif_turns_unseen_are_noted(world, capsys):
    exif = Image.Exif()
    exif[0x0112] = 3
    world.save(world.pixels("source/1.png"), "source/1.png", exif=exif)
    (note,) = notes(world)
    said = "1 of 2 images are turned by EXIF without a change of size, such as that of"
    assert said in note and "source_labels/1.png" in note
    assert said in checked(world, capsys)


def test_ids_that_the_map_does_not_name_are_noted_before_training(world):
    world.description["label_map"] = {0: "ground", 1: "hedge", 2: "sky", 3: "box", 255: "ignore"}
    assert notes(world) == []
    world.name = world.description["name"] = world.name + "b"

    def change(label):
        label[:2] = 77
        return label

    masks(world, change, ["val"])
    (note,) = notes(world)
    assert f"{world.name}_sem_seg_val" in note and "3.1% of the pixels" in note
    assert "id 77 (3.12%, not named)" in note and "ignore" in note


def test_names_with_control_characters_are_shown_escaped(world, capsys):
    name = "red\x1b[31m\nFAULT.png"
    (world.root / "target" / name).write_bytes(b"no image")
    told = checked(world, capsys, status=1)
    assert r"target/red\x1b[31m\nFAULT.png cannot be decoded" in told and "\x1b" not in told


def test_files_that_are_no_files_neither_hang_nor_fill_the_memory(world, capsys):
    os.mkfifo(world.root / "target/fifo.png")
    os.symlink("/dev/zero", world.root / "target/zero.png")
    with (world.root / "target/sparse.png").open("wb") as file:
        file.truncate(20 * 2**30)
    (world.root / "target/script.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    told = checked(world, capsys, status=1)
    for said in (
        "fifo.png is no regular file",
        "zero.png is no regular file",
        "sparse.png has 21474836480 bytes, above the limit",
        "script.png cannot be decoded (not an image)",
        "4 faults",
    ):
        assert said in told, told


def test_a_run_predicts_where_its_data_are_not(world, tmp_path, monkeypatch):
    world.description["label_map"] = {0: "ground", 1: "hedge", 2: "sky", 3: "box", 255: "ignore"}
    world.description["colors"] = [[i, 2, 3] for i in range(4)]
    train_net.cli(world.command(*SMALLEST, "SOLVER.MAX_ITER", "1", "VIS_PERIOD", "0"))
    image = world.save(world.pixels("target/0.png"), "elsewhere/image.png")
    run = tmp_path / "elsewhere/run"
    world.output.rename(run)
    for name in ("world.yaml", "source", "source_labels", "target", "val", "val_labels"):
        (tmp_path / name).rename(tmp_path / f"{name}.gone")
    forget(world)
    monkeypatch.chdir(image.parent)
    predict.main(["--run", "run", "--input", "image.png", "--output", "predicted"])
    export.main(["--run", "run", "--format", "slim", "--output", "slim.pth"])
    for source in ("run", run / "model_final.pth", "slim.pth"):
        classes = mpcl.Predictor(source).metadata
        assert classes.stuff_classes == CLASSES
        assert classes.stuff_colors == [(i, 2, 3) for i in range(4)]
        assert classes.label_map == {0: 0, 1: 1, 2: 2, 3: 3, 255: 255}


def test_an_evaluation_asks_for_the_folders_that_it_reads_alone(world, tmp_path):
    weights = world.checkpoint("weights.pth", *SMALLEST)
    for name in ("source", "source_labels", "target"):
        (tmp_path / name).rename(tmp_path / f"{name}.gone")
    world.flags = ["--eval-only"]
    args = train_net.parse_args(world.command(*SMALLEST, "MODEL.WEIGHTS", str(weights)))
    assert job.check(args) == []
    (tmp_path / "val").rename(tmp_path / "val.gone")
    with pytest.raises(ValueError, match=r"TEST: .*'splits.val': images .*val does not"):
        job.check(args)


def zipped(world: World, *folders: str, method: int = zipfile.ZIP_DEFLATED) -> None:
    """Moves folders of the world into archives of their names, below a folder inside."""
    for folder in folders:
        with zipfile.ZipFile(world.root / f"{folder}.ZIP", "w", method) as archive:
            archive.writestr("pack/", "")
            archive.writestr("pack/.hidden/0.png", b"")
            archive.writestr("__MACOSX/pack/._0.png", b"")
            for file in sorted((world.root / folder).rglob("*.png")):
                archive.write(file, f"pack/day/{file.name}")
        shutil.rmtree(world.root / folder)


def in_archives(world: World) -> None:
    zipped(world, "source", "source_labels", "target", "val", "val_labels")
    for split in world.description["splits"].values():
        split |= {kind: f"{split[kind]}.ZIP/pack" for kind in ("images", "labels") if kind in split}


def digest(batch: dict) -> list:
    return [
        record[key].sum().item()
        for records in batch.values()
        for record in records
        for key in {"image", "sem_seg"} & record.keys()
    ]


def test_archives_are_read_as_the_folders_in_them(world, capsys):
    opts = ("DATALOADER.NUM_WORKERS", "2", "SOLVER.IMS_PER_BATCH", "4")

    files = list(map(digest, batches(world, 4, *opts)))
    checked(world, capsys)
    forget(world)
    in_archives(world)
    told = checked(world, capsys)
    assert told.count("2 images") == 3 and told.count("no faults") == 3
    assert list(map(digest, batches(world, 4, *opts))) == files
    assert notes(world) == []
    train_net.cli(world.command(*SMALLEST, "SOLVER.MAX_ITER", "1", "VIS_PERIOD", "0"))
    assert list(world.root.glob("class_statistics_*.npz"))  # beside the archive


HOSTILE = {
    "encrypted": (lambda e: setattr(e, "flag_bits", e.flag_bits | 1), "is encrypted"),
    "another method": (
        lambda e: setattr(e, "compress_type", zipfile.ZIP_LZMA),
        "is packed by method 14; expected 0 (stored) or 8",
    ),
    "a bomb": (lambda e: setattr(e, "file_size", 2**40), "bytes, above the limit of"),
    "a lie about its size": (lambda e: setattr(e, "file_size", 9000), "unpacked: Bad CRC-32"),
    "too little": (lambda e: setattr(e, "file_size", 2**20), "bytes instead of 1048576"),
    "another checksum": (lambda e: setattr(e, "CRC", 1), "unpacked: Bad CRC-32"),
}


@pytest.mark.parametrize(("spoil", "said"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_wrong_in_an_archive_is_said_by_file(world, capsys, spoil, said):
    in_archives(world)
    archive = world.root / "target.ZIP"
    with zipfile.ZipFile(archive, "a") as opened:
        spoil(opened.getinfo("pack/day/1.png"))
        opened._didModify = True  # writes the directory anew
    told = checked(world, capsys, status=1)
    assert f"FAULT image {archive}/pack/day/1.png " in told and said in told, told
    assert "2 images, image-only" in told


def test_archives_that_are_none_or_cut_or_lack_the_folder_are_named(world, capsys):
    in_archives(world)
    archive = world.root / "target.ZIP"
    content = archive.read_bytes()
    world.description["splits"]["target"]["images"] = "target.ZIP/day"
    assert f"folder {archive}/day holds no file" in checked(world, capsys, status=1)
    forget(world)
    world.description["splits"]["target"]["images"] = "target.ZIP/pack"
    for broken in (content[: len(content) // 2], b"no zip", b""):
        archive.write_bytes(broken)
        assert f"{archive} is no readable zip archive" in checked(world, capsys, status=1)
    archive.write_bytes(content[:200] + bytes(200) + content[400:])
    assert "cannot be unpacked" in checked(world, capsys, status=1)


def test_names_in_archives_lead_nowhere_else(world, capsys):
    in_archives(world)
    with zipfile.ZipFile(world.root / "target.ZIP", "a") as archive:
        archive.writestr("pack/../../secret.png", b"x")
        archive.writestr("/pack/secret.png", b"x")
    told = checked(world, capsys)
    assert "2 images, image-only" in told
    with zipfile.ZipFile(world.root / "target.ZIP", "a") as archive:
        archive.writestr("pack/day/1.png", b"x")
    assert "have the same name" in checked(world, capsys, status=1)


def test_masks_say_where_target_images_show_something(world, capsys):
    for i in range(2):
        mask = np.full((64, 96), 255, np.uint8)
        mask[:, : 24 * (i + 1)] = 0
        world.save(mask, f"target_masks/{i}.png", mode="L" if i else "1")
        world.save(np.full((64, 96, 3), 20 * (i + 1), np.uint8), f"target/{i}.png")
    world.description["splits"]["target"]["valid"] = "target_masks"
    checked(world, capsys)
    opts = ("INPUT.RANDOM_FLIP", "none", "INPUT.CROP.SIZE", "(64,96)", *NO_MARGINS)
    (batch,) = batches(world, 1, *opts)
    for record in batch["target"]:
        columns = 24 * (record["image"].max().item() // 20)
        assert not record["valid"][:, :columns].any() and record["valid"][:, columns:].all()
    train_net.cli(world.command(*SMALLEST, "SOLVER.MAX_ITER", "1", "VIS_PERIOD", "0"))
    world.save(np.zeros((63, 96), np.uint8), "target_masks/1.png")
    told = checked(world, capsys, status=1)
    assert "mask" in told and "target_masks/1.png has height x width (63, 96)" in told
    (world.root / "target_masks/1.png").unlink()
    assert "target/1.png has no mask" in checked(world, capsys, status=1)


NO_CLASSES = {
    "no mapping": [1],
    "fewer colours": {"names": ["a", "b"], "colors": [[0, 0, 0]]},
    "a colour of two": {"names": ["a", "b"], "colors": [[0, 0, 0], [0, 0]]},
    "a name that is none": {"names": ["a", 1], "colors": [[0, 0, 0]] * 2},
    "a map to no class": {"names": ["a"], "colors": [[0, 0, 0]], "label_map": [[0, 1]]},
    "a map of no ids": {"names": ["a"], "colors": [[0, 0, 0]], "label_map": [["x", 0]]},
    "a map of no pairs": {"names": ["a"], "colors": [[0, 0, 0]], "label_map": [[0]]},
}


@pytest.mark.parametrize("content", NO_CLASSES.values(), ids=NO_CLASSES)
def test_classes_of_a_run_that_are_none_are_refused_by_name(tmp_path, content):
    (tmp_path / "config.yaml").write_text("SEED: 0\n")
    (tmp_path / "classes.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"classes\.json: the classes are .*; expected names"):
        mpcl.Predictor(tmp_path)
