"""A small world of files on which users make mistakes, and how a tool must answer them."""

import logging
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import CONFIGS, TINY, draw_scene
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from mpcl.config import get_cfg_from
from mpcl.data.sets import custom

CLASSES = ["ground", "hedge", "sky", "box"]

NO_ENCODER = ("MODEL.TIMM.NAME", "")  # TINY names one for the configs that build it


class World:
    """Two domains on disk, their description, and the command line that trains on them."""

    def __init__(self, root: Path) -> None:
        self.root, self.name = root, f"world{uuid.uuid4().hex[:8]}"
        self.output = root / "output"
        self.config = str(CONFIGS / "daformer_gauss.yaml")
        self.flags: list[str] = []
        self.description = {
            "name": self.name,
            "classes": list(CLASSES),
            "splits": {
                "source": {"images": "source", "labels": "source_labels"},
                "target": {"images": "target"},
                "val": {"images": "val", "labels": "val_labels"},
            },
        }
        for split, domain in (("source", "source"), ("target", "target"), ("val", "target")):
            for i in range(2):
                image, label = draw_scene(np.random.default_rng(i), domain)
                self.save(image, f"{split}/{i}.png")
                if split != "target":
                    self.save(label, f"{split}_labels/{i}.png")

    def save(self, pixels: np.ndarray, name: str, mode: str | None = None, **options) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels)
        (image.convert(mode) if mode else image).save(path, **options)
        return path

    def pixels(self, name: str) -> np.ndarray:
        return np.array(Image.open(self.root / name))

    def command(self, *opts: str) -> list[str]:
        (self.root / "world.yaml").write_text(yaml.safe_dump(self.description))
        sets = {
            "DATASETS.FILES": f"('{self.root / 'world.yaml'}',)",
            "DATASETS.TRAIN": f"('{self.name}_sem_seg_source',)",
            "DATASETS.TRAIN_TARGET": f"('{self.name}_images_target',)",
            "DATASETS.TEST": f"('{self.name}_sem_seg_val',)",
            "OUTPUT_DIR": str(self.output),
        }
        words = [word for pair in sets.items() for word in pair]
        return [
            "--config-file",
            self.config,
            *self.flags,
            *words,
            *TINY,
            *NO_ENCODER,
            *map(str, opts),
        ]

    def config_file(self, text: str, name: str = "mine.yaml") -> None:
        (self.root / name).write_text(text)
        self.config = str(self.root / "mine.yaml")

    def checkpoint(self, name: str, *opts: str) -> Path:
        """A checkpoint of an untrained model of the config with other options."""
        cfg = get_cfg_from(self.config, [*TINY, *opts])
        torch.save({"model": build_model(cfg).state_dict(), "iteration": 3}, self.root / name)
        return self.root / name


def cut(file: str, share: float = 0.5) -> Callable[[World], None]:
    """Truncates a file of the world."""

    def spoil(world: World) -> None:
        content = (world.root / file).read_bytes()
        (world.root / file).write_bytes(content[: int(share * len(content))])

    return spoil


@pytest.fixture
def world(tmp_path, monkeypatch):
    # Handlers that other tests have left write to streams that are closed by now.
    monkeypatch.setattr(logging, "raiseExceptions", False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = World(tmp_path)
    yield made
    forget(made)


def forget(world: World) -> None:
    """Takes the sets of a world out of the catalogs, as if another process went on."""
    for name in [name for name in DatasetCatalog if name.startswith(world.name)]:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
        custom._registered.pop(name, None)


def refuse(run: Callable[[], object], capsys) -> str:
    """The message with which a tool ends; with status 2 and without a traceback."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        run()
    said = capsys.readouterr()
    assert caught.value.code == 2, said.err
    assert "Traceback" not in said.err + said.out
    assert said.err.count("error: ") == 1, said.err
    return said.err
