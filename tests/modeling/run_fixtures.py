"""Output folders as training leaves them, made without training."""

import json
from pathlib import Path

import torch
import yaml
from detectron2.modeling import build_model

from mpcl.self_training.teacher import EMATeacher


def save_run(cfg) -> Path:
    """A run whose student and teacher predict differently, with started prototypes."""
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    student = build_model(cfg)
    content = {}
    if student.prototype_head is not None:
        prototypes = student.prototype_head.prototypes
        shape = prototypes.mean.shape
        all_classes = torch.ones(shape[0], dtype=torch.bool)
        prototypes.start_(all_classes, torch.randn(shape), torch.ones(shape))
    teacher = EMATeacher.from_config(cfg, student).model
    for network in (student, teacher):
        torch.nn.init.normal_(network.sem_seg_head.classifier.weight)
    content = {"model": student.state_dict(), "teacher": teacher.state_dict(), "iteration": 5}
    torch.save(content, folder / "model_final.pth")
    (folder / "last_checkpoint").write_text("model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder


def write_run(folder: Path, rows: list[dict], **settings) -> Path:
    """The folder of a training that left these rows in metrics.json, and no checkpoint.

    Args:
        settings: groups of the config, in place of these.
    """
    folder.mkdir(parents=True)
    config = {
        "SEED": 0,
        "OUTPUT_DIR": str(folder),
        "SOLVER": {"MAX_ITER": 40},
        "MODEL": {"DEVICE": "cpu"},
        "TEST": {"CLASS_SUBSETS": []},
        "DATASETS": {"TEST": ["a_val"]},
        **settings,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
