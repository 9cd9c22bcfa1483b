"""A user's mistakes, one a row: what is wrong, and what the message must hold.

Each is made through the command line, as a user makes it, in a small world of files. The answer is
one message that names the thing, what was expected and the remedy; the exit status is 2; there is
no traceback; nothing was written.
"""
# ruff: noqa: E501  (a table has long rows)

import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import train_net
from conftest import CONFIGS, SMALLEST, TINY, draw_scene
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils import comm
from mistakes import CLASSES, World, cut, refuse
from PIL import Image
from tiny_files import write_tiff

from mpcl.config import get_cfg_from
from mpcl.config.notes import scale_notes
from mpcl.config.preflight import preflight
from mpcl.engine import job
from mpcl.evaluation.evaluator import SegmentationEvaluator
from mpcl.utils import cli

ROOT = Path(__file__).parents[1]
pytest_plugins = ["mistakes"]


def remains(folder: Path) -> list[str]:
    return sorted(str(path) for path in folder.rglob("*")) if folder.exists() else []


# ---- the mistakes: functions of the world that return KEY VALUE pairs


def key(name: str, value: str) -> Callable[[World], list[str]]:
    return lambda world: [name, value]


def in_file(text: str) -> Callable[[World], None]:
    return lambda world: world.config_file(f"_BASE_: {CONFIGS / 'daformer_gauss.yaml'}\n{text}")


def sets(name: str, value: str) -> Callable[[World], list[str]]:
    """The names of sets: {w} is the world's."""
    return lambda world: [name, value.replace("{w}", world.name)]


def described(change: Callable[[dict], object]) -> Callable[[World], None]:
    def spoil(world: World) -> None:
        change(world.description)

    return spoil


def lossy(world: World) -> None:
    world.save(world.pixels("target/0.png"), "target/0.jpg")
    (world.root / "target/0.png").unlink()
    world.description["splits"]["target"]["nodata"] = [0, 0, 0]


def listed(world: World) -> None:
    """Lists as ``find`` writes them, of a folder each, in two orders."""
    for kind, order in (("source", "01"), ("source_labels", "10")):
        lines = "".join(f"{kind}/{i}.png\n" for i in order)
        (world.root / f"{kind}.txt").write_text(lines)
    split = world.description["splits"]["source"]
    split |= {"images": "source.txt", "labels": "source_labels.txt"}


def without(folder: str) -> Callable[[World], None]:
    return lambda world: shutil.rmtree(world.root / folder)


def emptied(folder: str) -> Callable[[World], None]:
    return lambda world: [file.unlink() for file in (world.root / folder).iterdir()] and None


def saved(pixels: Callable[[World], np.ndarray], file: str, mode: str | None = None, **options):
    def spoil(world: World) -> None:
        world.save(pixels(world), file, mode, **options)

    return spoil


def deep(world: World) -> None:
    image = cv2.imread(str(world.root / "source/0.png"))
    cv2.imwrite(str(world.root / "source/0.png"), image.astype(np.uint16) * 256)


def cmyk(world: World) -> None:
    (world.root / "target/0.png").unlink()
    world.save(draw_scene(np.random.default_rng(0), "target")[0], "target/0.jpg", "CMYK")


def turned(file: str, orientation: int) -> Callable[[World], None]:
    def spoil(world: World) -> None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        world.save(world.pixels(file), file, exif=exif)

    return spoil


def jpeg_labels(world: World) -> None:
    for i in range(2):
        path = world.root / f"source_labels/{i}.png"
        world.save(world.pixels(f"source_labels/{i}.png"), f"source_labels/{i}.jpg")
        path.unlink()
    world.description["splits"]["source"]["label_suffix"] = ".jpg"


def colours(world: World) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)


def foreign_id(world: World) -> np.ndarray:
    return world.pixels("source_labels/0.png") + np.uint8(4)


def two_names(world: World) -> None:
    shutil.copy(world.root / "source/0.png", world.root / "source/0.bmp")


def other_classes(world: World) -> list[str]:
    path = world.checkpoint("three.pth", "MODEL.SEM_SEG_HEAD.NUM_CLASSES", "3")
    return ["MODEL.WEIGHTS", str(path)]


DISTANCE = ("SELF_TRAINING.FEATURE_DISTANCE.WEIGHT", "0.1")
DISTANCE += ("SELF_TRAINING.FEATURE_DISTANCE.CLASSES", "(1,)")


def other_variant(world: World) -> list[str]:
    return ["MODEL.WEIGHTS", str(world.checkpoint("b1.pth", "MODEL.MIT.VARIANT", "b1"))]


def cut_checkpoint(world: World) -> list[str]:
    path = world.checkpoint("cut.pth")
    path.write_bytes(path.read_bytes()[:-5000])
    return ["MODEL.WEIGHTS", str(path)]


def weights(name: str, content: object) -> Callable[[World], list[str]]:
    def spoil(world: World) -> list[str]:
        path = world.root / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        return ["MODEL.WEIGHTS", str(path)]

    return spoil


def part_of_weights(world: World, name: str, encoder: bool) -> list[str]:
    state = torch.load(world.checkpoint("whole.pth"), weights_only=True)["model"]
    kept = {n: t for n, t in state.items() if n.startswith("backbone.") == encoder}
    torch.save({"model": kept}, world.root / name)
    return ["MODEL.WEIGHTS", str(world.root / name)]


def headless(world: World) -> list[str]:
    return part_of_weights(world, "head.pth", encoder=False)


def encoder_alone(world: World) -> list[str]:
    world.flags.append("--eval-only")
    return part_of_weights(world, "encoder.pth", encoder=True)


def folder_of_weights(world: World) -> list[str]:
    (world.root / "hub").mkdir()
    return ["MODEL.WEIGHTS", str(world.root / "hub")]


def output_is_a_file(world: World) -> list[str]:
    (world.root / "taken").write_text("mine")
    return ["OUTPUT_DIR", str(world.root / "taken" / "run")]


def flags(*words: str) -> Callable[[World], None]:
    return lambda world: world.flags.extend(words)


def lists(line: str) -> Callable[[World], None]:
    def spoil(world: World) -> None:
        (world.root / "lists").mkdir()
        (world.root / "lists/images.txt").write_text(line.replace("{root}", str(world.root)))
        world.description["splits"]["target"] = {"images": "lists/images.txt"}

    return spoil


def circle(*names: str) -> Callable[[World], None]:
    """Config files of which each is the next one's base, and the last one's the first."""

    def spoil(world: World) -> None:
        for name, base in zip(names, (*names[1:], names[0])):
            world.config_file(f"_BASE_: {base}\n", name)

    return spoil


def relabel(world: World, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for i in range(2):
        file = f"source_labels/{i}.png"
        world.save(change(world.pixels(file)), file)


def ink(keys: dict) -> Callable[[World], list[str]]:
    """Masks of 0 and 255, as a drawing program saves them."""

    def spoil(world: World) -> list[str]:
        world.description |= {"classes": ["background", "vessel"], **keys}
        relabel(world, lambda label: np.where(label == 1, 255, 0).astype(np.uint8))
        return ["MODEL.SEM_SEG_HEAD.NUM_CLASSES", "2"]

    return spoil


def other_order(world: World) -> list[str]:
    """The source once more, with two classes in each other's place."""
    world.command()
    text = (world.root / "world.yaml").read_text()
    text = text.replace(world.name, f"{world.name}b").replace(
        "- ground\n- hedge", "- hedge\n- ground"
    )
    (world.root / "other.yaml").write_text(text)
    files = f"('{world.root / 'world.yaml'}','{world.root / 'other.yaml'}')"
    names = f"('{world.name}_sem_seg_source','{world.name}b_sem_seg_source')"
    return ["DATASETS.FILES", files, "DATASETS.TRAIN", names]


def zipped(share: float = 1.0, flag: int = 0) -> Callable[[World], None]:
    """Puts the target into an archive: a part of one, or one whose second file has a flag."""

    def spoil(world: World) -> None:
        with zipfile.ZipFile(world.root / "target.zip", "w") as archive:
            for i in range(2):
                archive.write(world.root / f"target/{i}.png", f"{i}.png")
            archive.getinfo("1.png").flag_bits |= flag
        cut("target.zip", share)(world)
        world.description["splits"]["target"]["images"] = "target.zip"

    return spoil


def masked(world: World) -> None:
    for i in range(2):
        world.save(np.zeros((4, 6), np.uint8), f"masks/{i}.png")
    world.description["splits"]["target"]["valid"] = "masks"


def other_palettes(world: World) -> None:
    for i, palette in enumerate(([0, 0, 0, 9, 9, 9, 200, 0, 0], [0, 0, 0, 200, 0, 0, 9, 9, 9])):
        image = Image.fromarray(world.pixels(f"source_labels/{i}.png"))
        image.putpalette(palette + [7] * (768 - len(palette)))
        image.save(world.root / f"source_labels/{i}.png")


def colored(world: World, colors: dict) -> None:
    world.description["label_colors"] = colors
    relabel(world, lambda label: np.stack([label * 0, label * 0, label * 85], -1))


ARRAY = {"weight": torch.zeros(3, 3)}

CASES: list[tuple[str, Callable[[World], list[str] | None], str]] = [
    # config keys: misspelt, of the wrong type or range
    ("a misspelt key", key("SOLVER.BASE_LRR", "1e-4"), r"SOLVER\.BASE_LRR.*mean SOLVER\.BASE_LR"),
    ("a misspelt group", key("PROTOTYPE.TYPE", "gauss"), r"PROTOTYPE\.TYPE.*mean PROTOTYPES\.TYPE"),
    ("a key without its group", key("BASE_LR", "1e-4"), r"BASE_LR.*SOLVER\.BASE_LR"),
    ("a misspelt key in a file", in_file("SOLVER: {BASE_LRR: 1.0e-4}"), r"mine\.yaml.*SOLVER\.BASE_LR\b"),
    ("a value without a key", lambda w: ["SEED"], r"KEY VALUE pairs.*odd"),
    ("text for a number", key("SOLVER.BASE_LR", "fast"), r"SOLVER\.BASE_LR is 'fast', text; expected a number"),
    ("a fraction for a count", key("SOLVER.MAX_ITER", "1.5"), r"MAX_ITER is 1\.5.*whole number"),
    ("text for a switch", key("SELF_TRAINING.ENABLED", "yes"), r"ENABLED is 'yes'.*True or False"),
    ("a name for a list", key("DATASETS.TEST", "gta5"), r"DATASETS\.TEST is 'gta5'.*a list.*\('gta5',\)"),
    ("a value for a group", in_file("SOLVER: 3"), r"SOLVER is 3; expected a group of keys"),
    ("a group as an option", key("SOLVER", "3"), r"SOLVER is a group.*BASE_LR"),
    ("a negative rate", key("SOLVER.BASE_LR", "-0.1"), r"BASE_LR is -0\.1; expected above 0"),
    ("no iterations", key("SOLVER.MAX_ITER", "0"), r"MAX_ITER is 0; expected from 1 to"),
    ("a negative seed", key("SEED", "-1"), r"SEED is -1; expected from 0 to"),
    ("a share above one", key("SELF_TRAINING.CONFIDENCE_THRESHOLD", "96.8"), r"THRESHOLD is 96\.8; expected from 0 to 1"),
    ("a rate that is no number", key("SOLVER.WEIGHT_DECAY", "1e999"), r"WEIGHT_DECAY is inf; expected at least 0"),
    ("a crop of one side", key("INPUT.CROP.SIZE", "(64,)"), r"CROP\.SIZE is \(64,\); expected \(height, width\)"),
    ("a crop of text", key("INPUT.CROP.SIZE", "('a','b')"), r"CROP\.SIZE.*two whole numbers"),
    ("a size of one zero", key("INPUT.SOURCE_SIZE", "(96,0)"), r"SOURCE_SIZE is \(96, 0\).*images' own size"),
    ("windows with gaps", key("TEST.SLIDE.STRIDE", "(80,80)"), r"STRIDE is \(80, 80\).*at most TEST\.SLIDE\.CROP"),
    ("an augmentation of no size", key("TEST.AUG.MIN_SIZES", "()"), r"AUG\.MIN_SIZES is \(\); expected whole numbers from 1"),
    ("a selection on no test set", key("TEST.SELECT_ON", "leaves"), r"SELECT_ON is 'leaves'; expected a set of DATASETS.TEST .*_sem_seg_val"),
    ("a selection without evaluations", sets("TEST.SELECT_ON", "{w}_sem_seg_val"), r"TEST\.EVAL_PERIOD is 0; expected from 1"),
    ("margins of everything", key("SELF_TRAINING.IGNORE_MARGINS", "(0.5,0.5,0,0)"), r"IGNORE_MARGINS.*leave some"),
    ("K above the bank", key("PROTOTYPES.NUM_PER_CLASS", "201"), r"NUM_PER_CLASS is 201.*BANK\.SIZE 200"),
    ("no class at all", key("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "0"), r"NUM_CLASSES is 0; expected from 1 to 255"),
    ("a thing that is no class", lambda w: ["SELF_TRAINING.FEATURE_DISTANCE.WEIGHT", "0.1", "SELF_TRAINING.FEATURE_DISTANCE.CLASSES", "(6,)", "MODEL.WEIGHTS", "x"], r"CLASSES is \(6,\).*below.*4"),
    ("an option behind the keys", lambda w: ["SEED", "1", "--num-gpus", "2"], r"--num-gpus stands behind KEY VALUE pairs"),
    ("a config without its option", lambda w: ["mine.yaml"], r"mine\.yaml stands where a KEY was expected; a config is named by --config-file"),
    ("a key twice in a config", lambda w: w.config_file("SOLVER: {MAX_ITER: 2}\nSOLVER: {BASE_LR: 0.1}\n"), r"mine\.yaml is no valid YAML.*a key twice: SOLVER"),
    # unknown names
    ("an unknown prototype", key("PROTOTYPES.TYPE", "gaussian"), r"'gaussian'; expected one of none, centroid, gauss"),
    ("an unknown architecture", key("MODEL.META_ARCHITECTURE", "HRDA"), r"'HRDA'.*HRDASegmentor.*MPCLSegmentor|'HRDA'.*MPCLSegmentor.*HRDASegmentor"),
    ("an architecture that cannot be adapted", key("MODEL.META_ARCHITECTURE", "GeneralizedRCNN"), r"'GeneralizedRCNN'; expected one of (MPCLSegmentor, HRDASegmentor|HRDASegmentor, MPCLSegmentor)\n"),
    ("an unknown backbone", key("MODEL.BACKBONE.NAME", "mit_b5"), r"'mit_b5'.*MixTransformer"),
    ("an unknown variant", key("MODEL.MIT.VARIANT", "b6"), r"VARIANT is 'b6'; expected one of b0, b1"),
    ("an unknown head", key("MODEL.SEM_SEG_HEAD.NAME", "SegFormer"), r"'SegFormer'.*DAFormerHead"),
    ("a head without features to cluster", key("MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"), r"'SemSegFPNHead'; expected one of DAFormerHead\n"),
    ("an unknown encoder of timm", lambda w: ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "vit_smal"], r"vit_smal"),
    ("an unknown data set", sets("DATASETS.TRAIN", "('{w}_sem_seg_sauce',)"), r"TRAIN names '.*sauce'.*known: .*_sem_seg_source"),
    ("an unknown way with bad files", key("DATALOADER.ON_BAD_FILE", "ignore"), r"'ignore'; expected one of error, skip"),
    # files of configs and descriptions
    ("a config that is missing", lambda w: setattr(w, "config", "nowhere.yaml"), r"config file nowhere\.yaml does not exist"),
    ("a base that is missing", lambda w: w.config_file("_BASE_: nothing.yaml\n"), r"nothing\.yaml does not exist.*_BASE_ of .*mine\.yaml"),
    ("a config that is its own base", circle("mine.yaml"), r"leads back to it: \S+/mine\.yaml -> \S+/mine\.yaml\n"),
    ("bases in a circle", circle("mine.yaml", "a.yaml", "b.yaml"), r"mine\.yaml: its _BASE_ leads back to it: \S+/mine\.yaml -> \S+/a\.yaml -> \S+/b\.yaml -> \S+/mine\.yaml\n"),
    ("a config whose name moves the cursor", lambda w: w.config_file("_BASE_: \"\\e[2J\\n.yaml\"\n"), r"config file \S+/\\x1b\[2J\\n\.yaml does not exist"),
    ("a config that is no YAML", lambda w: w.config_file("SOLVER: [\n"), r"mine\.yaml.*no valid YAML"),
    ("a Python config", lambda w: setattr(w, "config", "lazy.py"), r"lazy\.py is Python.*YAML"),
    ("an empty config", lambda w: w.config_file(""), r"mine\.yaml.*is empty"),
    ("a description without classes", described(lambda d: d.pop("classes")), r"world\.yaml: key 'classes'.*expected a list"),
    ("a description of nothing", described(lambda d: d["splits"]["val"].update(images="nowhere")), r"'splits\.val': images .*nowhere.*does not exist"),
    ("a misspelt key of a split", described(lambda d: d["splits"]["val"].update(image="x")), r"splits\.val\.image.*one of the keys images"),
    ("a list that leads outside", lists("../../secret.png\n"), r"outside .*lists.*'\.\./\.\./secret\.png'.*key root"),
    ("a list of missing files", lists("gone.png\n"), r"names 1 missing files.*gone\.png"),
    ("an empty list", lists(""), r"images\.txt is empty"),
    # folders and pairs
    ("a folder that was removed", without("target"), r"'splits\.target': images .*does not exist"),
    ("an empty folder", emptied("source"), r"folder .*source holds no file"),
    ("an image without a label", lambda w: (w.root / "source_labels/1.png").unlink(), r"no label in .*source_labels for 1 of 2 images.*source/1\.png"),
    ("a label without an image", lambda w: (w.root / "source/1.png").unlink(), r"1 labels without an image.*source_labels/1\.png"),
    ("two images of one name", two_names, r"source/0\.(png|bmp).*which is the image"),
    ("no source", key("DATASETS.TRAIN", "()"), r"DATASETS\.TRAIN is empty; expected.*labelled"),
    ("no target", key("DATASETS.TRAIN_TARGET", "()"), r"TRAIN_TARGET is empty; expected.*image-only"),
    ("a labelled target", sets("DATASETS.TRAIN_TARGET", "('{w}_sem_seg_source',)"), r"TRAIN_TARGET expects image-only sets.*has labels"),
    ("an unlabelled source", sets("DATASETS.TRAIN", "('{w}_images_target',)"), r"TRAIN expects labelled sets.*image-only"),
    ("an unlabelled test set", sets("DATASETS.TEST", "('{w}_images_target',)"), r"TEST expects labelled sets.*image-only"),
    ("a data set that was not prepared", key("DATASETS.TRAIN", "('gta5_sem_seg_train',)"), r"gta5/images.*prepare_gta5\.py"),
    ("classes of another number", described(lambda d: d.update(classes=CLASSES[:3])), r"has 3 classes.*NUM_CLASSES is 4.*set it to 3"),
    ("shares of some sets", sets("DATASETS.SHARES", "(('{w}_sem_seg_val',1),)"), r"DATASETS\.SHARES is .*names each set of DATASETS\.TRAIN"),
    ("a share of nothing", sets("DATASETS.SHARES", "(('{w}_sem_seg_source',0),)"), r"DATASETS\.SHARES is .*number above 0"),
    ("classes in another order", other_order, r"TRAIN: class 0 is 'hedge' in \w+b_sem_seg_source and 'ground' in \w+; expected one order"),
    ("an archive that is cut", zipped(0.5), r"target\.zip is no readable zip archive"),
    ("an archive with a password", zipped(flag=1), r"target\.zip/1\.png is encrypted"),
    # images and labels
    ("an id outside the classes", saved(foreign_id, "source_labels/0.png"), r"source_labels/0\.png holds the ids \[4, 5.*below 4.*label_map"),
    ("an id outside, in the test set", saved(foreign_id, "val_labels/0.png"), r"TEST.*val_labels/0\.png holds the ids"),
    ("a label of another size", saved(lambda w: np.zeros((32, 96), np.uint8), "source_labels/0.png"), r"height x width \(32, 96\).*\(64, 96\).*same size"),
    ("an image turned by its EXIF tag", turned("source/0.png", 6), r"\(64, 96\).*\(96, 64\).*EXIF orientation"),
    ("a label turned by its EXIF tag", turned("source_labels/0.png", 3), r"source_labels/0\.png has EXIF orientation 3.*remove the tag"),
    ("16 bits a channel", deep, r"source/0\.png is in mode 'RGB;16B'.*convert it to 8 bits"),
    ("grey of 16 bits", saved(lambda w: np.zeros((64, 96), np.uint16), "target/0.png"), r"target/0\.png is in mode 'I.*8 bits"),
    ("CMYK", cmyk, r"target/0\.jpg is in mode 'CMYK'.*convert it to RGB"),
    ("a label in colours", saved(colours, "source_labels/0.png"), r"source_labels/0\.png has mode 'RGB'.*name the class of each colour with label_colors"),
    ("a label of 16 bits", saved(lambda w: np.zeros((64, 96), np.uint16), "source_labels/0.png"), r"mode 'I.*8-bit.*as 8 bits"),
    ("labels as JPEG", jpeg_labels, r"source_labels/0\.jpg.*JPEG.*save it as PNG"),
    ("a truncated image", cut("source/0.png"), r"source/0\.png cannot be decoded.*download"),
    ("a truncated target", cut("target/0.png"), r"target/0\.png cannot be decoded"),
    ("a truncated label", cut("val_labels/0.png"), r"val_labels/0\.png cannot be decoded"),
    ("an image of nothing", cut("target/0.png", 0.0), r"target/0\.png cannot be decoded"),
    # what the ids mean
    ("masks of 0 and 255 without a map", ink({}), r"no class but background.*id 255 .*mean label_map: \{0: background, 255: vessel\}"),
    ("a class that no label shows", lambda w: relabel(w, lambda label: np.where(label == 3, 0, label)), r"no pixel has the class box .*absent: \[box\]"),
    ("one class", described(lambda d: d.update(classes=["ground"])), r"key 'classes'.*2 to 255 names.*background"),
    ("an absent class that is none", described(lambda d: d["splits"]["val"].update(absent=["bax"])), r"splits\.val\.absent.*'bax'.*ground, hedge"),
    ("palettes that disagree", other_palettes, r"id 1 is RGB \[9, 9, 9\] in .*source_labels/0\.png and \[200, 0, 0\] in .*source_labels/1\.png"),
    ("a colour without a class", lambda w: colored(w, {"ground": [0, 0, 0], "box": [[0, 0, 255]]}), r"source_labels/0\.png holds \d+ colours that label_colors does not name, on \d+ of 6144"),
    ("a colour of two classes", described(lambda d: d.update(label_colors={"box": [1, 2, 3], "sky": [1, 2, 3]})), r"label_colors\.sky.*every colour once"),
    ("a colour of no class", described(lambda d: d.update(label_colors={"roda": [1, 2, 3]})), r"label_colors\.roda.*a class name"),
    ("a colour of two numbers", described(lambda d: d.update(label_colors={"box": [1, 2]})), r"label_colors\.box.*\[red, green, blue\]"),
    ("labels and masks", described(lambda d: d["splits"]["source"].update(valid="source_labels")), r"splits\.source\.valid.*labels that say ignore"),
    ("a mask of another size", masked, r"DATASETS\.TRAIN_TARGET.*mask .*masks/0\.png has height x width \(4, 6\)"),
    ("labels and pixels without data", described(lambda d: d["splits"]["source"].update(nodata=[0, 0, 0])), r"splits\.source\.nodata.*labels that say ignore"),
    ("a colour without data in JPEGs", lossy, r"nodata \[0, 0, 0\] of .*target/0\.jpg: JPEG changes colours.*key valid"),
    ("images in two places", described(lambda d: d["splits"]["target"].update(images=["target", "target"])), r"target/0\.png is in two of them"),
    ("lists in two orders", listed, r"line 1 of the lists pairs image 0 with labels 1.*sort them"),
    ("colours and ids", described(lambda d: d.update(label_colors={"box": [1, 2, 3]}, ignore=9)), r"'ignore'.*beside label_colors"),
    # what is no image, or more than one
    ("a pipe as an image", lambda w: os.mkfifo(w.root / "target/0a.png"), r"0a\.png is no regular file"),
    ("PostScript as an image", lambda w: (w.root / "target/0a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n") and None, r"0a\.png cannot be decoded \(not an image\)"),
    ("an image of five bands", lambda w: write_tiff(w.root / "target/0a.tif", np.zeros((4, 6, 5), np.uint8), (0, 0)) and None, r"0a\.tif has 5 bands"),
    # weights
    ("weights that are missing", key("MODEL.WEIGHTS", "nowhere.pth"), r"nowhere\.pth.*(put|name)"),
    ("weights whose name moves the cursor", key("MODEL.WEIGHTS", "\x1b[2J.pth"), r"no weights at \\x1b\[2J\.pth"),
    ("weights that are a URL", key("MODEL.WEIGHTS", "https://a.b/c.pth"), r"MODEL\.WEIGHTS https://a\.b/c\.pth is no file of this machine"),
    ("a folder without weights", folder_of_weights, r"no weights in folder .*hub.*model\.safetensors"),
    ("a truncated checkpoint", cut_checkpoint, r"cut\.pth is no weight file, is truncated"),
    ("an empty checkpoint", weights("empty.pth", b""), r"empty\.pth is no weight file"),
    ("text as a checkpoint", weights("page.pth", b"<html>404</html>"), r"page\.pth is no weight file"),
    ("a list as a checkpoint", weights("list.pth", [1, 2]), r"list\.pth.*expected a dict of tensors by name, got list"),
    ("a checkpoint without tensors", weights("none.pth", {"a": 1}), r"none\.pth.*expected tensors"),
    ("a checkpoint of something else", weights("mnist.pth", ARRAY), r"mnist\.pth.*weight.*known are"),
    ("a checkpoint of fewer classes", other_classes, r"three\.pth.*classifier.*\(3, .*expected \(4, .*NUM_CLASSES.*ALLOW_UNMATCHED"),
    ("a checkpoint of another encoder", other_variant, r"b1\.pth.*MiT-b1.*MODEL\.MIT\.VARIANT is tiny.*ALLOW_UNMATCHED"),
    ("a checkpoint without a backbone", headless, r"head\.pth.*no backbone.*ALLOW_UNMATCHED"),
    ("an incomplete encoder to compare with", lambda w: [*other_variant(w), *DISTANCE, "MODEL.ALLOW_UNMATCHED", "True"], r"b1\.pth.*FEATURE_DISTANCE needs all of its weights(?!.*ALLOW_UNMATCHED)"),
    ("a file of pycls", weights("r.pyth", ARRAY), r"pycls are not read.*as \.pth"),
    # the machine and the job
    ("an output folder below a file", output_is_a_file, r"OUTPUT_DIR.*taken.*(cannot be written).*choose another"),
    ("an output folder that is read-only", key("OUTPUT_DIR", "/proc/mpcl/run"), r"OUTPUT_DIR is '/proc/mpcl/run', but /proc cannot be written"),
    ("no output folder", key("OUTPUT_DIR", "''"), r"OUTPUT_DIR is empty; expected a folder"),
    ("an unknown device", key("MODEL.DEVICE", "gpu"), r"MODEL\.DEVICE is 'gpu'; expected cpu or cuda"),
    ("a batch that ranks cannot share", lambda w: w.flags.extend(["--num-gpus", "2"]) or ["SOLVER.IMS_PER_BATCH", "3"], r"IMS_PER_BATCH is 3.*multiple of the 2"),
    ("nothing to evaluate", flags("--eval-only"), r"Nothing to evaluate.*MODEL\.WEIGHTS"),
    ("no checkpoint to evaluate", flags("--eval-only", "--resume"), r"Nothing to evaluate.*no checkpoint in .*output"),
    ("an encoder to evaluate", encoder_alone, r"encoder\.pth lacks .*sem_seg_head.*would be random"),
]  # fmt: skip


@pytest.mark.parametrize(("spoil", "said"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_is_refused_with_one_message_before_anything_is_written(world, capsys, spoil, said):
    opts = spoil(world) or []
    command = world.command(*opts)
    before = remains(world.output)
    message = refuse(lambda: train_net.cli(command), capsys)
    assert re.search(said, message, re.DOTALL), message
    assert remains(world.output) == before == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a GPU that is not there")
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_named(world, capsys, device):
    message = refuse(lambda: train_net.cli(world.command("MODEL.DEVICE", device)), capsys)
    assert f"MODEL.DEVICE is '{device}'" in message and "set MODEL.DEVICE cpu" in message


def test_several_faults_are_told_at_once(world, capsys):
    cut("target/0.png")(world)
    opts = ["SOLVER.IMS_PER_BATCH", "3", "OUTPUT_DIR", "/proc/x"]
    world.flags += ["--num-gpus", "2"]
    message = refuse(lambda: train_net.cli(world.command(*opts)), capsys)
    assert "3 faults" in message
    for name in ("target/0.png", "IMS_PER_BATCH", "/proc"):
        assert name in message


def test_debug_shows_the_traceback_wherever_it_stands(world):
    command = world.command("SEED", "-1")
    for words in (["--debug", *command], [*command, "--debug"]):
        with pytest.raises(ValueError, match="SEED is -1"):
            train_net.cli(words)


def test_as_a_process_it_ends_with_status_2_and_no_traceback(world):
    command = [sys.executable, "-W", "ignore", str(ROOT / "tools/train_net.py")]
    # (The tiny variant is that of the tests' own process.)
    command += world.command("SOLVER.BASE_LR", "-1.0", "MODEL.MIT.VARIANT", "b0")
    plain = subprocess.run(command, capture_output=True, text=True)
    assert plain.returncode == 2 and "Traceback" not in plain.stderr
    assert plain.stderr.startswith("train_net.py: error: SOLVER.BASE_LR is -1.0")
    assert remains(world.output) == []


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


DESCRIPTION = ("config.yaml", "classes.json", "run.json", "metrics.json")
OTHER_RUNS = {
    "SOLVER.MAX_ITER 1": r"model_final\.pth has done 2 iterations.*MAX_ITER is 1.*--eval-only",
    "SEED 5": r"SEED was 0 and is 5.*SOLVER\.RESUME_CHANGED True",
    "SOLVER.IMS_PER_BATCH 4": r"IMS_PER_BATCH was 2 and is 4",
    "PROTOTYPES.TYPE centroid": r"prototype head differs.*PROTOTYPES\.TYPE as it was trained",
    "SELF_TRAINING.ENABLED False PROTOTYPES.TYPE none": r"SELF_TRAINING\.ENABLED was True and is",
    "PROTOTYPES.NUM_PER_CLASS 2": r"model_final\.pth.*another shape.*prototype",
    "MODEL.BACKBONE.NAME MixTransformer": r"model_final\.pth.*ALLOW_UNMATCHED",
}


def test_another_run_in_a_runs_folder_is_refused_and_changes_nothing(world, capsys):
    train(world, "SOLVER.MAX_ITER", "2")
    before = contents(world.output)
    message = refuse(lambda: train_net.cli(world.command(*SMALLEST)), capsys)
    assert all(word in message for word in ("holds a run", "--resume", "OUTPUT_DIR", "--overwrite"))
    world.flags.append("--resume")
    for changed, said in OTHER_RUNS.items():
        command = world.command(*SMALLEST, *changed.split())
        message = refuse(lambda: train_net.cli(command), capsys)  # noqa: B023
        assert re.search(said, message, re.DOTALL), message
        assert contents(world.output) == before
    world.flags += ["--num-gpus", "2"]
    message = refuse(lambda: train_net.cli(world.command(*SMALLEST)), capsys)
    assert "number of processes was 1 and is 2" in message
    assert contents(world.output) == before
    world.flags = ["--overwrite"]
    train(world, "SOLVER.MAX_ITER", "1")
    assert (world.output / "model_final.old.pth").read_bytes() == before[
        world.output / "model_final.pth"
    ]
    assert torch.load(world.output / "model_final.pth")["iteration"] == 0


def test_neither_a_late_refusal_nor_an_evaluation_changes_what_a_run_says_of_itself(world, capsys):
    train(world, "SOLVER.MAX_ITER", "2")
    described = {name: (world.output / name).read_bytes() for name in DESCRIPTION}
    weights = ("MODEL.WEIGHTS", str(world.output / "model_final.pth"))
    world.flags = ["--eval-only"]
    other = ("INPUT.TARGET_SIZE", "(48, 32)", "PROTOTYPES.TYPE", "none")
    train_net.cli(world.command(*SMALLEST, *other, *weights))
    world.flags = ["--resume"]
    # Only the optimizer's state tells, when it is loaded.
    late = ("SOLVER.MAX_ITER", "3", "SOLVER.LAYER_DECAY", "0.5")
    message = refuse(lambda: train_net.cli(world.command(*SMALLEST, *late)), capsys)
    assert re.search(r"model_final\.pth: .*groups of parameters.*SOLVER\.LAYER_DECAY", message)
    assert {name: (world.output / name).read_bytes() for name in DESCRIPTION} == described


def test_an_encoder_that_was_trained_further_is_no_reference_without_a_word(world):
    train(world, "SOLVER.MAX_ITER", "1")
    world.flags, opts = ["--overwrite"], ["MODEL.WEIGHTS", str(world.output / "model_final.pth")]
    assert not any("feature distance" in note for note in flawless(world, *SMALLEST, *opts))
    notes = flawless(world, *SMALLEST, *opts, *DISTANCE)
    assert any("holds a decode head: the feature distance" in note for note in notes)
    kept = world.output / "classes.json"
    kept.write_text(kept.read_text().replace('"ground"', '"soil"'))
    assert any("was trained on other classes" in note for note in flawless(world, *SMALLEST, *opts))


def test_a_run_shorter_than_twice_its_warm_up_is_told(world):
    notes = flawless(world, *SMALLEST, "SOLVER.WARMUP_ITERS", "5", "SOLVER.MAX_ITER", "9")
    assert any("the learning rate stays low" in note for note in notes)


def test_a_resumed_run_says_in_what_it_differs_from_before(world):
    train(world, "SOLVER.MAX_ITER", "2", "SOLVER.BASE_LR", "0.01")
    world.flags = ["--resume"]
    notes = flawless(world, *SMALLEST, "SOLVER.MAX_ITER", "9", "VIS_PERIOD", "0")
    assert "the run goes on with SOLVER.MAX_ITER 9; it was 2" in notes
    assert any("SOLVER.BASE_LR" in note and "it was 0.01" in note for note in notes)
    assert len(notes) == 2


def test_processes_of_one_machine_say_it_once_and_end_alike(world, capsys, monkeypatch):
    monkeypatch.setattr(cli, "UNTIL_TOLD", 0)

    def ends_silently(run) -> None:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            run()
        assert end.value.code == 2 and "".join(capsys.readouterr()) == ""

    monkeypatch.setenv("LOCAL_RANK", "1")  # as torchrun tells its processes
    ends_silently(lambda: train_net.cli(world.command("SEED", "-1")))
    monkeypatch.setattr(comm, "get_local_rank", lambda: 1)
    args = train_net.parse_args(world.command("SEED", "-1"))
    ends_silently(lambda: job.run_process(args))


def flawless(world: World, *opts: str) -> list[str]:
    """Notes of the preflight."""
    args = train_net.parse_args(world.command(*opts))
    return job.check(args)


def test_a_world_without_fault_passes_within_two_seconds(world):
    start = time.perf_counter()
    assert flawless(world) == []
    assert time.perf_counter() - start < 2
    assert remains(world.output) == []


def test_a_crop_larger_than_the_images_is_noted_with_what_it_costs(world):
    # 64 x 96 pixels of 128 x 128 are 37.5 percent
    notes = flawless(world, "INPUT.CROP.SIZE", "(128, 128)")
    assert len(notes) == 2 and all("62% of the crops is padding" in note for note in notes)


def test_a_run_that_ends_before_its_prototypes_start_is_noted(world):
    (note,) = flawless(world, "PROTOTYPES.INIT.ITER", "9", "SOLVER.MAX_ITER", "9")
    assert "no prototype starts" in note and "INIT.ITER is 9" in note
    assert flawless(world, "PROTOTYPES.INIT.ITER", "8", "SOLVER.MAX_ITER", "9") == []


def test_a_set_that_ignores_another_label_is_refused(world):
    flawless(world)  # it is registered now
    name = f"{world.name}_sem_seg_source"
    described = MetadataCatalog.get(name).as_dict()
    for value in (0, None):
        MetadataCatalog.remove(name)
        MetadataCatalog.get(name).set(**{**described, "ignore_label": value})
        said = rf"{name}: ignore_label of its metadata is {value}; expected 255"
        with pytest.raises(ValueError, match=said):
            flawless(world)
        with pytest.raises(ValueError, match=said):
            SegmentationEvaluator(name)


def test_a_corrupt_file_is_noted_where_it_will_be_skipped(world):
    cut("target/0.png")(world)
    (note,) = flawless(world, "DATALOADER.ON_BAD_FILE", "skip")
    assert "target/0.png cannot be decoded" in note and "skipped" in note


def test_a_file_that_will_be_skipped_does_not_hide_what_is_wrong_with_the_labels(world):
    cut("source/0.png")(world)
    relabel(world, np.zeros_like)
    skipped, labels = flawless(world, "DATALOADER.ON_BAD_FILE", "skip")
    assert "source/0.png cannot be decoded" in skipped
    assert "1 labels that were looked at: no class but ground has a pixel" in labels


def test_a_network_that_cannot_be_built_without_memory_is_built_with_some(world, monkeypatch):
    """Such as of detectron2's Swin Transformers, which read numbers from tensors."""

    def build(cfg):
        if cfg.MODEL.DEVICE == "meta":
            raise RuntimeError("Tensor.item() cannot be called on meta tensors")
        return build_model(cfg)

    monkeypatch.setattr("mpcl.config.preflight.build_model", build)
    flawless(world, "MODEL.WEIGHTS", str(world.checkpoint("own.pth")))
    with pytest.raises(ValueError, match=r"three\.pth.*classifier"):
        flawless(world, *other_classes(world))


def test_unmatched_weights_are_taken_where_it_is_asked_for(world):
    for spoil in (other_classes, other_variant, headless):
        flawless(world, *spoil(world), "MODEL.ALLOW_UNMATCHED", "True")


def train(world: World, *opts: str) -> Path:
    train_net.cli(world.command(*SMALLEST, "SOLVER.MAX_ITER", "3", "VIS_PERIOD", "0", *opts))
    return world.output / "model_final.pth"


def test_sets_of_one_image_train(world):
    for folder in ("source", "source_labels", "target", "val", "val_labels"):
        (world.root / folder / "1.png").unlink()
    assert train(world).is_file()


def test_a_class_of_fewer_pixels_than_prototypes_trains(world):
    for i in range(2):
        label = world.pixels(f"source_labels/{i}.png")
        label[label == 3] = 0
        label[0, 0] = 3  # one pixel; K is 3
        world.save(label, f"source_labels/{i}.png")
    assert train(world, "PROTOTYPES.INIT.MIN_SAMPLES", "1").is_file()


def test_skipped_files_are_reported_when_training_ends(world, caplog):
    world.save(world.pixels("target/1.png"), "target/2.png")
    cut("target/1.png")(world)
    with caplog.at_level("WARNING"):
        train(world, "DATALOADER.ON_BAD_FILE", "skip")
    assert "1 files could not be used" in caplog.text and "target/1.png" in caplog.text
    state = torch.load(world.output / "model_final.pth", weights_only=True)
    (counted,) = [h for n, h in state["trainer"]["hooks"].items() if n == "BadFiles"]
    assert list(counted) == [str(world.root / "target/1.png")]


def test_every_shipped_config_can_be_checked_without_memory(world):
    from mpcl.config.preflight import _check_weights

    for name in ("mic_gauss", "hrda_centroid", "daformer_gauss", "mic_gauss_dinov2"):
        cfg = get_cfg_from(str(CONFIGS / f"{name}.yaml"), TINY)
        path = world.root / f"{name}.pth"
        torch.save({"model": build_model(cfg).state_dict()}, path)
        cfg.MODEL.WEIGHTS = str(path)
        _check_weights(cfg, resumed=None, eval_only=False, notes=[])


def test_a_missing_set_of_detectron2s_is_named_with_where_to_read_on(tmp_path):
    opts = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path)]
    cfg = get_cfg_from(str(CONFIGS / "mic_gauss.yaml"), opts)
    pattern = r"DATASETS.TEST: data set 'cityscapes_fine_sem_seg_val': \S+ does not exist\. See"
    with pytest.raises(ValueError, match=pattern):
        preflight(cfg)


def test_headers_are_read_of_images_that_are_not_decoded(world):
    for number in range(2, 20):
        world.save(world.pixels("target/0.png"), f"target/{number:02d}.png")
    # The second of twenty, of which every other one is decoded.
    (world.root / "target/02.png").write_bytes(b"no image")
    args = train_net.parse_args(world.command())
    cfg = get_cfg_from(args.config_file, args.opts)
    with pytest.raises(ValueError, match=r"target/02\.png cannot be decoded \(not an image\)"):
        preflight(cfg)


@pytest.mark.parametrize(
    ("scales", "said"),
    [
        ({"a": [0.6, 1.0, 1.9], "b": [1.4, 1.5, 1.6]}, []),
        (
            {"a": [0.9, 1.0, 1.1], "b": [1.5, 1.6, 1.7]},
            ["different factors: a 1.00 (0.90 to 1.10)"],
        ),
        ({"a": [0.49, 1.0, 1.0]}, ["resized strongly"]),
        ({"a": [1.0, 1.0, 2.01]}, ["resized strongly"]),
        ({}, []),
    ],
)
def test_sets_that_are_resized_strongly_or_unlike_each_other_are_told(scales, said):
    notes = scale_notes(scales)
    assert len(notes) == len(said) and all(text in note for text, note in zip(said, notes))
