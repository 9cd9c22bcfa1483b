from pathlib import Path

import pytest
import torch
import yaml
from detectron2.modeling import build_model

from mpcl.config import get_cfg_from

CONFIGS = Path(__file__).parents[1] / "projects" / "MPCL" / "configs"
FRAGMENTS = {"baselines", "prototypes", "benchmarks", "backbones", "memory"}
LEAVES = sorted(p for p in CONFIGS.rglob("*.yaml") if p.parent.name not in FRAGMENTS)


@pytest.mark.parametrize("path", LEAVES, ids=lambda p: str(p.relative_to(CONFIGS)))
def test_config_builds_its_model_and_says_how_to_run_it(path):
    small = ["MODEL.MIT.VARIANT", "b0", "MODEL.TIMM.NAME", "test_vit"]
    cfg = get_cfg_from(str(path), ["MODEL.DEVICE", "meta", *small])  # no memory
    with torch.device("meta"):
        model = build_model(cfg)
    assert (model.prototype_head is not None) == (cfg.PROTOTYPES.TYPE != "none")
    assert (path.stem not in ("source_only", "oracle")) == cfg.SELF_TRAINING.ENABLED
    assert path.stem.startswith(("hrda", "mic")) * ("daformer" not in path.stem) == (
        cfg.MODEL.META_ARCHITECTURE == "HRDASegmentor"
    )
    assert path.stem.startswith("mic") == (cfg.SELF_TRAINING.MASKED.WEIGHT > 0)
    words = path.stem.split("_")
    expected = next((kind for kind in ("centroid", "gauss") if kind in words), "none")
    assert expected == cfg.PROTOTYPES.TYPE
    head = path.read_text().split("_BASE_")[0]
    assert f"--config-file projects/MPCL/configs/{path.relative_to(CONFIGS)}" in head


HRDA = ("MODEL.META_ARCHITECTURE", "HRDASegmentor")
BENCHMARKS = [p.stem for p in (CONFIGS / "benchmarks").glob("*.yaml") if p.stem != "small_scale"]


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_any_parts_make_a_config(tmp_path, benchmark):
    high_resolution = benchmark.endswith("_high_resolution")
    for method in (
        ("hrda", "mic") if high_resolution else ("source_only", "daformer", "mic_daformer")
    ):
        for kind in (None, "centroid", "gauss") if method != "source_only" else (None,):
            parts = [f"baselines/{method}", *([f"prototypes/{kind}"] if kind else [])]
            lines = [f"  - {CONFIGS / part}.yaml" for part in (*parts, f"benchmarks/{benchmark}")]
            (tmp_path / "mine.yaml").write_text("\n".join(["_BASE_:", *lines]))
            cfg = get_cfg_from(str(tmp_path / "mine.yaml"))
            assert (kind or "none") == cfg.PROTOTYPES.TYPE
            assert (cfg.MODEL.META_ARCHITECTURE == "HRDASegmentor") == high_resolution
            leaf = CONFIGS / f"{method}{f'_{kind}' if kind else ''}.yaml"
            if benchmark.removesuffix("_high_resolution") == "gta5_to_cityscapes" and leaf.exists():
                cfg.OUTPUT_DIR = get_cfg_from(str(leaf)).OUTPUT_DIR
                assert cfg.dump() == get_cfg_from(str(leaf)).dump()


def test_output_folders_of_configs_differ():
    folders = [yaml.safe_load(path.read_text())["OUTPUT_DIR"] for path in LEAVES]
    assert len(set(folders)) == len(folders)


def test_gta5_config_has_the_papers_hyper_parameters():
    def has(node, **values):
        assert {key: node[key] for key in values} == values

    cfg = get_cfg_from(str(CONFIGS / "daformer_gauss.yaml"))
    proto, st = cfg.PROTOTYPES, cfg.SELF_TRAINING
    has(cfg.SOLVER, MAX_ITER=60000, IMS_PER_BATCH=2, WARMUP_ITERS=1500)
    has(cfg.SOLVER, BASE_LR=6e-5, HEAD_LR_FACTOR=10, WEIGHT_DECAY=0.01)
    assert tuple(cfg.INPUT.CROP.SIZE) == (640, 640) and cfg.MODEL.MIT.VARIANT == "b5"
    has(proto, NUM_PER_CLASS=5, DIM=256, TEMPERATURE=0.1, MOMENTUM=0.999)
    has(proto, CONTRAST_WEIGHT=0.1, CONSISTENCY_WEIGHT=0.1)
    has(st, TEACHER_MOMENTUM=0.999, CONFIDENCE_THRESHOLD=0.968)
    assert (proto.BANK.SIZE, st.FEATURE_DISTANCE.WEIGHT) == (20000, 0.005)
    # 640 rows: DAFormer's 15 and 120 of 512, scaled.
    assert (round(st.IGNORE_TOP * 640), round(st.IGNORE_BOTTOM * 640)) == (19, 150)


@pytest.mark.parametrize(
    ("config", "image", "scale"),
    [
        ("daformer_512", (1914, 1052), 1),
        ("daformer_gauss", (1914, 1052), 1),
        ("mic_daformer", (1914, 1052), 1),
        ("mic_gauss", (1914, 1052), 2),
        ("gta5_synthia/mic_gauss", (1914, 1052), 2),
        ("synthia/daformer_gauss", (1280, 760), 1),
        ("synthia/mic_gauss", (1280, 760), 2),
        ("acdc/daformer_gauss", (2048, 1024), 1.25),  # source images 1280 instead of 1024 wide
        ("dark_zurich/mic_gauss", (2048, 1024), 2),
    ],
)
def test_rare_classes_need_as_many_pixels_as_published(config, image, scale):
    """3,000 of a source image as it is stored; in a crop, of images as DAFormer scales them, 1,500,
    which grow as the images do (``min_crop_ratio`` is 0.5, in HRDA and MIC 2.0)."""
    cfg = get_cfg_from(str(CONFIGS / f"{config}.yaml"))
    settings, (height, width) = cfg.DATALOADER.RARE_CLASS, cfg.INPUT.CROP.SIZE
    of_image = settings.MIN_IMAGE_FRACTION * image[0] * image[1]
    of_crop = settings.MIN_CROP_FRACTION * height * width
    assert of_image == pytest.approx(3000, rel=0.002)
    assert of_crop == pytest.approx(1500 * scale**2, rel=0.002)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["PROTOTYPES.CONTRAST_VIEWS", ("sauce",)], "sauce.*source, mixed, target"),
        (["PROTOTYPES.CONTRAST_VIEWS", ()], "CONTRAST_WEIGHT to 0"),
        (["PROTOTYPES.CONTRAST_VIEWS", ("mixed", "target")], "part of 'mixed'"),
        (["PROTOTYPES.SCALES", ("detail",)], r"SCALES is \('detail',\); expected \('context',\)"),
        (["PROTOTYPES.SCALES", ("context", "detail")], "SCALES.*HRDASegmentor"),
        (["PROTOTYPES.TYPE", "gauss", "SELF_TRAINING.ENABLED", False], "needs SELF_TRAINING"),
        (["SELF_TRAINING.FEATURE_DISTANCE.WEIGHT", 0.005], "MODEL.WEIGHTS"),
        (["SELF_TRAINING.IGNORE_TOP", 0.5, "SELF_TRAINING.IGNORE_BOTTOM", 0.5], "sum below 1"),
        (["SELF_TRAINING.MASKED.WEIGHT", 1, "INPUT.CROP.SIZE", (32, 64)], "BLOCK_SIZE is 64.*32"),
        ([*HRDA, "INPUT.CROP.SIZE", (642, 642)], "of 8"),
        (["MODEL.PIXEL_STD", (0, 0, 0)], r"PIXEL_STD is \(0, 0, 0\); expected .* above 0"),
        (["MODEL.PIXEL_MEAN", (1.0, 2.0)], r"PIXEL_MEAN is \(1.0, 2.0\); expected three"),
        (["MODEL.SEM_SEG_HEAD.NORM", "XYZ"], "NORM is 'XYZ'; expected one of BN"),
        (["MODEL.SEM_SEG_HEAD.DILATIONS", (0,)], "DILATIONS.*from 1"),
        (["DATASETS.TRAIN", (1,)], r"DATASETS.TRAIN is \(1,\); expected a list of texts"),
        (["DATALOADER.NUM_WORKERS", 100000], "NUM_WORKERS is 100000; expected from 0 to 1000"),
        (["INPUT.CROP.SIZE", (100000, 100000)], "CROP.SIZE.*from 1 to 16384"),
        (["SELF_TRAINING.COLLAPSE.MIN_ENTROPY", 5.0], "MIN_ENTROPY is 5.0; expected from 0 to 1"),
        (["TEST.OUTPUT", "prototypes"], "PROTOTYPES.TYPE"),
        (["TEST.INFERENCE", "sliding"], "whole, slide"),
        # Detectron2's own that are not read
        (["SOLVER.LR_SCHEDULER_NAME", "x"], "LR_SCHEDULER_NAME is 'x'.*nothing here reads"),
        (["MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", 5.0], r"LOSS_WEIGHT is 5\.0.*nothing here reads"),
        (["MODEL.ROI_HEADS.NUM_CLASSES", 3], r"ROI_HEADS\.NUM_CLASSES is 3.*nothing here reads"),
        (["SEED", "None"], "SEED is None, no value; expected a whole number"),
        (["INPUT.CROP.SIZE", None], r"INPUT\.CROP\.SIZE is None, no value; expected a list"),
        (["SOLVER.GAMMA", 0.5], r"GAMMA is 0\.5; expected 0\.1: nothing"),
        (["INPUT.FORMAT", "BGR"], "INPUT.FORMAT is 'BGR'; expected 'RGB'"),
        (["VERSION", 99], "VERSION is 99; expected 2"),
        (
            ["SELF_TRAINING.IGNORE_MARGINS", (0.1, 0, 0, 0), "SELF_TRAINING.IGNORE_BOTTOM", 0.2],
            "IGNORE_MARGINS .* exclude each other",
        ),
        (["SOLVER.DETERMINISTIC", True, "CUDNN_BENCHMARK", True], "DETERMINISTIC and CUDNN_BENCH"),
        ([*HRDA, "MODEL.HRDA.DETAIL_SIZE", (32, 40)], r"\(32, 40\); expected multiples of 16"),
        ([*HRDA, "TEST.SLIDE.CROP", (516, 512)], r"CROP is \(516, 512\); expected multiples of 8"),
    ],
)
def test_impossible_config_is_refused(opts, message):
    with pytest.raises(ValueError, match=message):
        get_cfg_from("", opts)


def test_a_home_folder_may_be_written_with_a_tilde(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    cfg = get_cfg_from("", ["OUTPUT_DIR", "~/runs/x", "MODEL.WEIGHTS", "~/w.pth"])
    assert str(tmp_path / "runs" / "x") == cfg.OUTPUT_DIR
    assert str(tmp_path / "w.pth") == cfg.MODEL.WEIGHTS
