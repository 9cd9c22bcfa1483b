"""A two-domain world of a few tiny images, and configs that train on it in seconds."""

from pathlib import Path

import numpy as np
import pytest
import tiny_encoder  # noqa: F401  (MODEL.MIT.VARIANT tiny)
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

import mpcl  # noqa: F401  (registers everything)
from mpcl.config import get_cfg_from

pytest.register_assert_rewrite("mistakes")  # its helpers assert for the tests

CONFIGS = Path(__file__).parents[1] / "projects" / "MPCL" / "configs"
NUM_CLASSES = 4
COLORS = {"source": [(90, 90, 90), (40, 160, 40), (70, 130, 220), (200, 40, 40)]}
COLORS["target"] = [(60, 55, 70), (60, 110, 40), (110, 110, 150), (140, 30, 60)]


def draw_scene(
    rng: np.random.Generator, domain: str, size=(64, 96)
) -> tuple[np.ndarray, np.ndarray]:
    """Ground, hedge, sky and a box, in the domain's colours with noise; 255 in a corner."""
    height, width = size
    label = np.full(size, 2, np.uint8)
    horizon = int(height * rng.uniform(0.4, 0.6))
    label[horizon:] = 0
    label[horizon - height // 8 : horizon] = 1
    x = int(rng.integers(0, width - width // 4))
    label[horizon - height // 6 : horizon + height // 6, x : x + width // 4] = 3
    label[-4:, :4] = 255
    palette = np.array([*COLORS[domain], (0, 0, 0)])
    image = palette[np.minimum(label, NUM_CLASSES)] + rng.normal(0, 12, (*size, 3))
    return image.clip(0, 255).astype(np.uint8), label


def register_world(root: Path, prefix: str) -> dict[str, str]:
    """Draws labelled ``source`` images, image-only ``target`` ones and labelled ``val`` ones, and
    registers them; returns the names of the sets by role."""
    names = {}
    for role, count in {"source": 6, "target": 6, "val": 3}.items():
        rng, records = np.random.default_rng(len(role)), []
        for i in range(count):
            image, label = draw_scene(rng, "source" if role == "source" else "target")
            record = {"file_name": str(root / f"{role}_{i}.png"), "image_id": i}
            Image.fromarray(image).save(record["file_name"])
            if role != "target":
                record["sem_seg_file_name"] = str(root / f"{role}_{i}_label.png")
                Image.fromarray(label).save(record["sem_seg_file_name"])
            records.append(record)
        name = names[role] = f"{prefix}_{role}"
        DatasetCatalog.register(name, lambda records=records: [dict(r) for r in records])
        MetadataCatalog.get(name).set(
            stuff_classes=["ground", "hedge", "sky", "box"],
            stuff_colors=COLORS["source"],
            ignore_label=255,
            evaluator_type="sem_seg",
            label_map=None,
        )
    return names


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory) -> dict[str, str]:
    """The names of :func:`register_world`."""
    names = register_world(tmp_path_factory.mktemp("tiny_world"), "tiny")
    yield names
    for name in names.values():
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


TINY = [
    *("MODEL.DEVICE", "cpu"),
    *("MODEL.WEIGHTS", "''"),
    *("MODEL.MIT.VARIANT", "tiny"),
    *("MODEL.TIMM.NAME", "test_vit"),
    *("MODEL.SEM_SEG_HEAD.CONVS_DIM", "16"),
    *("MODEL.SEM_SEG_HEAD.NUM_CLASSES", "4"),
    *("INPUT.SOURCE_SIZE", "(96,64)"),
    *("INPUT.TARGET_SIZE", "(96,64)"),
    *("INPUT.CROP.SIZE", "(64,64)"),
    *("SOLVER.AMP.ENABLED", "False"),
    *("SOLVER.MAX_ITER", "6"),
    *("SOLVER.CHECKPOINT_PERIOD", "3"),
    *("SOLVER.WARMUP_ITERS", "2"),
    *("SOLVER.BASE_LR", "0.0005"),
    *("SELF_TRAINING.FEATURE_DISTANCE.WEIGHT", "0.0"),
    *("SELF_TRAINING.MASKED.BLOCK_SIZE", "16"),
    *("MODEL.HRDA.DETAIL_SIZE", "(32,32)"),
    *("TEST.SLIDE.CROP", "(64,64)"),
    *("TEST.SLIDE.STRIDE", "(32,32)"),
    *("TEST.CLASS_SUBSETS", "()"),
    *("SELF_TRAINING.CONFIDENCE_THRESHOLD", "0.3"),
    *("PROTOTYPES.DIM", "16"),
    *("PROTOTYPES.NUM_PER_CLASS", "3"),
    *("PROTOTYPES.BANK.SIZE", "200"),
    *("PROTOTYPES.POOL_SIZE", "400"),
    *("PROTOTYPES.INIT.ITER", "2"),
    *("PROTOTYPES.GRADIENT_SHARE_PERIOD", "2"),
    *("DATALOADER.NUM_WORKERS", "0"),
    *("TEST.EVAL_PERIOD", "0"),
    *("VIS_PERIOD", "3"),
    *("LOG_PERIOD", "1"),
]

# The fastest encoder there is.
SMALLEST = ("MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "test_vit")


@pytest.fixture
def tiny_cfg(tiny_world, tmp_path, monkeypatch):
    """``tiny_cfg("daformer_gauss", "KEY", value, ...)``: a shipped config, shrunk to the tiny
    world."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def build(name: str, *opts):
        data = [
            *("DATASETS.TRAIN", (tiny_world["source"],)),
            *("DATASETS.TRAIN_TARGET", (tiny_world["target"],)),
            *("DATASETS.TEST", (tiny_world["val"],)),
            *("OUTPUT_DIR", str(tmp_path / "output")),
        ]
        cfg = get_cfg_from(str(CONFIGS / f"{name}.yaml"), [*data, *TINY, *opts])
        cfg.freeze()
        return cfg

    return build


@pytest.fixture(scope="session")
def trained_runs(tiny_world, tmp_path_factory) -> dict[str, Path]:
    """Output folders of two short finished runs, by method: ``source_only`` and
    ``daformer_gauss``, the latter with prototypes; two evaluations and two checkpoints each."""
    from mpcl.engine import AdaptationTrainer
    from mpcl.evaluation.run_record import record_session

    root = tmp_path_factory.mktemp("trained_runs")
    data = ["DATASETS.TRAIN", (tiny_world["source"],), "DATASETS.TEST", (tiny_world["val"],)]
    data += ["DATASETS.TRAIN_TARGET", (tiny_world["target"],)]
    short = ["SOLVER.MAX_ITER", 4, "PROTOTYPES.INIT.ITER", 1, "PROTOTYPES.INIT.MIN_SAMPLES", 1]
    short += ["SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 2, "VIS_PERIOD", 0]
    for method in ("source_only", "daformer_gauss"):
        config_file = str(CONFIGS / f"{method}.yaml")
        folder = root / method
        cfg = get_cfg_from(
            config_file, [*data, *TINY, *SMALLEST, *short, "OUTPUT_DIR", str(folder)]
        )
        record_session(cfg, config_file, command=["train_net.py", "--config-file", method])
        (folder / "config.yaml").write_text(cfg.dump())
        trainer = AdaptationTrainer(cfg)
        trainer.resume_or_load(resume=False)
        trainer.train()
    return {method: root / method for method in ("source_only", "daformer_gauss")}


@pytest.fixture(scope="session")
def report_of_runs(trained_runs, tmp_path_factory) -> Path:
    """The page about :func:`trained_runs`: three images, two patches of each prototype."""
    from mpcl.visualization.report.page import write_report

    output = tmp_path_factory.mktemp("report") / "report.html"
    assert write_report(list(trained_runs.values()), output, images=3, patches=2) == []
    return output


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device, where tools/gpu_check.py runs it")


@pytest.fixture(autouse=True)
def one_thread():
    """Equal sums in every test, and no fight for cores between parallel test workers."""
    torch.set_num_threads(1)
