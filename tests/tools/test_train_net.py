"""The command line, on folders in GTA5's and Cityscapes' exact format."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import train_net
from checkpoint_fixtures import official_encoder_name
from conftest import SMALLEST
from mistakes import cut, refuse
from PIL import Image
from tiny_files import write_label, write_palette_label

from mpcl.engine import AdaptationTrainer
from mpcl.engine.guards import EXIT_DIVERGED
from mpcl.modeling import MixTransformer
from mpcl.utils import atomic_write

pytest_plugins = ["mistakes"]
ROOT = Path(__file__).parents[2]
# Ids of GTA5 and Cityscapes: road, building, vegetation, sky, car.
IDS = np.array([7, 11, 21, 23, 26])
COLORS = np.array([(128, 64, 128), (70, 70, 70), (107, 142, 35), (70, 130, 180), (0, 0, 142)])


def scene(seed: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of the five classes in their colours, with noise; the label in raw ids."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 5, (4, 8)).repeat(height // 4, 0).repeat(width // 8, 1)
    image = COLORS[blocks] + rng.normal(0, 10, (*blocks.shape, 3))
    return image.clip(0, 255).astype(np.uint8), IDS[blocks]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory) -> Path:
    """gta5 and cityscapes as downloaded, and ImageNet weights in SegFormer's format."""
    root = tmp_path_factory.mktemp("data")
    for i in range(1, 5):
        image, ids = scene(i, 104, 192)
        save(image, root / f"gta5/images/{i:05d}.png")
        write_palette_label(root / f"gta5/labels/{i:05d}.png", ids)
    for split, city in (("train", "aachen"), ("val", "lindau")):
        for i in range(3):
            image, ids = scene(50 + i, 64, 128)
            stem = f"{city}_{i:06d}_000019"
            save(image // 2, root / f"cityscapes/leftImg8bit/{split}/{city}/{stem}_leftImg8bit.png")
            folder = root / f"cityscapes/gtFine/{split}/{city}"
            write_label(folder / f"{stem}_gtFine_labelIds.png", ids)
            write_label(folder / f"{stem}_gtFine_instanceIds.png", ids)
            (folder / f"{stem}_gtFine_polygons.json").write_text(
                '{"imgHeight": 64, "imgWidth": 128}'
            )
    encoder = MixTransformer(variant="b0")
    weights = {official_encoder_name(k): v for k, v in encoder.state_dict().items()}
    torch.save(weights | {"head.weight": torch.zeros(1000, 256)}, root / "mit_b0.pth")
    return root


def save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


# Scripts as ``python SCRIPT WORDS`` runs them, one after the other in one process, which imports
# everything once.
SESSION = """
import json, os, runpy, sys

for words in json.load(sys.stdin):
    print("=====", *words, flush=True)
    sys.argv, sys.path[0] = words, os.path.dirname(words[0])
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    sys.stdout.flush()
"""


def run(data_root: Path, commands: list[list[str]]) -> list[str]:
    """What each command has printed."""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SESSION],
        input=json.dumps(commands),
        cwd=ROOT,
        env=os.environ | {"DETECTRON2_DATASETS": str(data_root), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    return result.stdout.split("=====")[1:]


def test_gta5_config_trains_resumes_and_evaluates(data_root, tmp_path):
    command = [
        *("tools/train_net.py", "--config-file", "projects/MPCL/configs/daformer_gauss.yaml")
    ]
    small = [
        *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", str(data_root / "mit_b0.pth")),
        *("MODEL.MIT.VARIANT", "b0", "MODEL.SEM_SEG_HEAD.CONVS_DIM", "16"),
        *("INPUT.SOURCE_SIZE", "(128, 72)", "INPUT.TARGET_SIZE", "(128, 64)"),
        *("INPUT.CROP.SIZE", "(64, 64)", "SOLVER.AMP.ENABLED", "False"),
        *("PROTOTYPES.INIT.ITER", "1", "PROTOTYPES.BANK.SIZE", "500", "LOG_PERIOD", "1"),
        *("DATALOADER.NUM_WORKERS", "0", "OUTPUT_DIR", str(tmp_path)),
    ]
    weights = ["MODEL.WEIGHTS", str(tmp_path / "model_final.pth")]
    _, _, first, resumed, evaluated = run(
        data_root,
        [
            ["datasets/prepare_gta5.py"],
            ["datasets/prepare_cityscapes.py"],
            [*command, *small, "SOLVER.MAX_ITER", "2"],
            [*command, "--resume", *small, "SOLVER.MAX_ITER", "4"],
            [*command, "--eval-only", *small, *weights],
        ],
    )
    assert "eta:" in first and "loss_contrast" in first and "loss_feature_distance" in first
    assert "Starting training from iteration 2" in resumed
    rows = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    final = {k: v for row in rows if row["iteration"] >= 3 for k, v in row.items()}
    assert final["loss_contrast"] > 0
    assert f"mIoU {final['sem_seg/mIoU']:.2f}" in evaluated
    assert f"mIoU {final['sem_seg_student/mIoU']:.2f}" in evaluated
    assert "traffic light" in evaluated and "absent" in evaluated


def test_help_shows_how_to_run_and_resume(capsys):
    with pytest.raises(SystemExit) as end:
        train_net.parse_args(["--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    for line in train_net.__doc__.splitlines():
        assert line in text  # as it is written: no wrapper has moved its words
    assert "LazyConfig" not in text and "DefaultTrainer" not in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num-gpus", "0"], "expect 1 or more"),
        (["--num-machines", "-1"], "expect 1 or more"),
        (["--machine-rank", "1"], "below --num-machines 1"),
        (["--num-machines", "2"], "needs --dist-url"),
        (["--nothing"], "unrecognized arguments: --nothing"),
    ],
)
def test_impossible_arguments_are_refused(words, said, capsys):
    assert said in refuse(lambda: train_net.parse_args(words), capsys)


# Exit statuses, in a world so small that a run takes a second. 0 is above; 2 is also what
# tests/test_bad_input.py expects a hundred times; 75 is in tests/engine/test_preemption.py.

SHORT = ["SOLVER.MAX_ITER", "4", "VIS_PERIOD", "0", *map(str, SMALLEST)]


def status(command: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        train_net.cli(command)
    return end.value.code


def test_diverged_run_ends_with_its_status_and_names_its_images(world, monkeypatch):
    next_step = AdaptationTrainer.next_step

    def spoilt_step(trainer):
        step = next_step(trainer)
        step.source.images.fill_(float("nan"))
        return step

    monkeypatch.setattr(AdaptationTrainer, "next_step", spoilt_step)
    assert status(world.command(*SHORT, "SOLVER.MAX_SKIPPED", "2")) == EXIT_DIVERGED == 65
    assert "source/" in (world.output / "diverged.json").read_text()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_corrupt_file_that_training_meets_is_one_message_of_its_name(world, capsys, workers):
    cut("target/1.png")(world)  # the first is looked at before training
    command = world.command(*SHORT, "DATALOADER.NUM_WORKERS", workers)
    message = refuse(lambda: train_net.cli(command), capsys)
    assert "target/1.png cannot be decoded" in message and "worker" not in message


def test_full_disk_is_one_message_that_names_the_whole_checkpoint(world, capsys, monkeypatch):
    fsync = os.fsync

    def full(descriptor):
        if "model_0000001" in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    monkeypatch.setattr(atomic_write.os, "fsync", full)
    command = world.command(*SHORT, "SOLVER.CHECKPOINT_PERIOD", "1")
    message = refuse(lambda: train_net.cli(command), capsys)
    assert "model_0000001.pth: No space left on device" in message
    assert "model_0000000.pth is whole" in message and "--resume" in message
    assert "Traceback" not in (world.output / "log.txt").read_text()
    monkeypatch.setattr(atomic_write.os, "fsync", fsync)  # there is room again
    world.flags.append("--resume")
    train_net.cli(world.command(*SHORT))
    assert (world.output / "model_final.pth").is_file()
