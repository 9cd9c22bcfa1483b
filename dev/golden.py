#!/usr/bin/env python
"""Proof that a change of the code changes no number.

  python dev/golden.py record    # writes output/golden.json with the code as it is
  python dev/golden.py check     # compares the code as it is with that

Trains each method with each prototype type for six iterations on a tiny drawn world (one thread,
fixed seed, with pictures, guard and checkpoints as in a real run), and writes down the losses of
every iteration, a digest (norm and sum) of the tensors of the final checkpoint by module, and the
predictions of student, teacher and ``mpcl.Predictor``. Equal means within 1e-5 of the larger
number; the largest difference is printed. Other processors and versions of torch round otherwise:
record on the machine, and with the commit, that the change starts from.
"""

import argparse
import json
import logging
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch.utils._pytree import keystr, tree_flatten_with_path

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "output" / "golden.json"
TOLERANCE = 1e-5
RUNS = (
    "source_only",
    *(m + p for m in ("daformer", "hrda", "mic") for p in ("", "_centroid", "_gauss")),
)
ODD_SIZES = ((57, 83), (20, 31), (64, 96))
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "modeling")]


def make_world(root: Path) -> list:
    """The config's options that name the drawn world."""
    from conftest import register_world

    names = register_world(root, "golden")
    keys = {"source": "DATASETS.TRAIN", "target": "DATASETS.TRAIN_TARGET", "val": "DATASETS.TEST"}
    return [word for role, key in keys.items() for word in (key, (names[role],))]


def encoder_file(root: Path) -> Path:
    """Weights of a MiT-B0, for the feature distance's reference encoder and the student's start."""
    from mpcl.modeling import MixTransformer

    torch.manual_seed(0)
    file = root / "mit_b0.pth"
    state = MixTransformer(variant="b0").state_dict()
    torch.save({"model": {f"backbone.{name}": value for name, value in state.items()}}, file)
    return file


def config(name: str, root: Path, data: list):
    from conftest import TINY

    from mpcl.config import get_cfg_from

    opts = [*data, *TINY, "OUTPUT_DIR", str(root / name), "SEED", 3]
    opts += ["MODEL.WEIGHTS", str(root / "mit_b0.pth"), "MODEL.MIT.VARIANT", "b0"]
    opts += ["SELF_TRAINING.FEATURE_DISTANCE.CLASSES", (0, 2)]
    opts += ["SELF_TRAINING.FEATURE_DISTANCE.MIN_RATIO", 0.3]
    opts += ["SELF_TRAINING.FEATURE_DISTANCE.WEIGHT", 0.0 if name == "source_only" else 0.005]
    opts += ["PROTOTYPES.INIT.MIN_SAMPLES", 4, "SELF_TRAINING.CONFIDENCE_THRESHOLD", 0.26]
    cfg = get_cfg_from(str(ROOT / "projects/MPCL/configs" / f"{name}.yaml"), opts)
    cfg.freeze()
    return cfg


def digest(tensors: dict) -> dict[str, list[float]]:
    """Norm and sum of the tensors of each module, down to the third part of its name."""
    groups: dict[str, list[float]] = {}
    for name, value in sorted(tensors.items()):
        if not isinstance(value, torch.Tensor):
            continue
        value, group = value.double(), groups.setdefault(".".join(name.split(".")[:3]), [0.0, 0.0])
        group[0] += value.square().sum().item()
        group[1] += value.sum().item()
    return {name: [square**0.5, total] for name, (square, total) in groups.items()}


def logits_of(network, images: torch.Tensor) -> dict[str, list[float]]:
    with torch.no_grad():
        records = [{"image": image} for image in images]
        return digest({str(i): out["sem_seg"] for i, out in enumerate(network(records))})


def train(name: str, root: Path, data: list) -> dict:
    """What one run shows."""
    from detectron2.utils.env import seed_all_rng

    import mpcl
    from mpcl.engine import AdaptationTrainer

    cfg = config(name, root, data)
    folder = Path(cfg.OUTPUT_DIR)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    seed_all_rng(cfg.SEED)  # as detectron2's default_setup does
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    lines = map(json.loads, (folder / "metrics.json").read_text().splitlines())
    shown = [
        {
            k: v
            for k, v in line.items()
            if "loss" in k or k.split("/")[0] in ("pseudo_label", "prototypes")
        }
        for line in lines
    ]
    saved = torch.load(folder / "model_final.pth", weights_only=True)
    moments = trainer.optimizer.state_dict()["state"]
    images = torch.randint(0, 256, (2, 3, 64, 96), generator=torch.Generator().manual_seed(1))
    networks = {"student": trainer.student.eval()}
    if trainer.teacher is not None:
        networks["teacher"] = trainer.teacher.eval()
    predictor, rng = mpcl.Predictor(str(folder)), np.random.default_rng(2)
    odd = [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in ODD_SIZES]
    return {
        "lines": shown,
        "model": digest(saved["model"]),
        "teacher": digest(saved.get("teacher", {})),
        "optimizer": digest({f"{k}.{i}": v for i, s in moments.items() for k, v in s.items()}),
        "predictions": {role: logits_of(network, images) for role, network in networks.items()},
        "predictor": digest({str(i): predictor(image)["sem_seg"] for i, image in enumerate(odd)}),
    }


def flat(value) -> dict[str, float]:
    return {keystr(path): float(leaf) for path, leaf in tree_flatten_with_path(value)[0]}


def compare(name: str, expected: dict, found: dict) -> bool:
    """Prints the largest difference, and the names that differ."""
    old, new = flat(expected), flat(found)
    missing, added = sorted(old.keys() - new.keys()), sorted(new.keys() - old.keys())
    # A sum may cancel: its digest's norm is the scale that it is compared on.
    scale = {
        k: max(abs(v), abs(old.get(k.removesuffix("[1]") + "[0]", 0.0)), 1e-3)
        for k, v in old.items()
    }
    apart = {k: abs(old[k] - new[k]) / scale[k] for k in old.keys() & new.keys()}
    worst = max(apart, key=apart.__getitem__)
    bad = sorted((k for k in apart if not apart[k] <= TOLERANCE), key=apart.__getitem__)
    print(f"{name:20} {len(apart)} numbers, largest difference {apart[worst]:.1e} at {worst}")
    for key in bad[-5:]:
        print(f"    {key}: {old[key]!r} -> {new[key]!r}")
    for title, keys in (("gone", missing), ("new", added)):
        if keys:
            print(f"    {title}: {', '.join(keys[:6])}{' ...' if len(keys) > 6 else ''}")
    return not bad


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("record", "check"))
    parser.add_argument("runs", nargs="*", help="names of runs (default: all)")
    parser.add_argument("--reference", type=Path, default=REFERENCE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["XDG_CACHE_HOME"] = str(root / "cache")
        data = make_world(root)
        encoder_file(root)
        found = {name: train(name, root, data) for name in args.runs or RUNS}
    if args.action == "record":
        args.reference.parent.mkdir(exist_ok=True)
        args.reference.write_text(json.dumps(found, separators=(",", ":")) + "\n")
        return
    reference = json.loads(args.reference.read_text())
    equal = [compare(name, reference[name], run) for name, run in found.items()]
    sys.exit(not all(equal))


if __name__ == "__main__":
    main()
