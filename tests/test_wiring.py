"""That each key reaches what it is the key of, and none reaches another's place."""

import pytest
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model

from mpcl.data.mapper import SourceMapper, TargetMapper
from mpcl.engine import AdaptationHook
from mpcl.losses.criterion import Criterion
from mpcl.prototypes.learner import PrototypeLearner
from mpcl.self_training.teacher import EMATeacher

# Values that no key has by default, and no two keys in common.
VALUES = {
    "MODEL.HRDA.DETAIL_WEIGHT": 0.13,
    "SELF_TRAINING.TEACHER_MOMENTUM": 0.913,
    "SELF_TRAINING.TEACHER_STATISTICS": "target",
    "SELF_TRAINING.CONFIDENCE_THRESHOLD": 0.83,
    "SELF_TRAINING.CONFIDENCE": "image",
    "SELF_TRAINING.IGNORE_TOP": 0.11,
    "SELF_TRAINING.IGNORE_BOTTOM": 0.22,
    "SELF_TRAINING.IGNORE_MARGINS": (0.01, 0.02, 0.03, 0.04),
    "SELF_TRAINING.JITTER_PROBABILITY": 0.71,
    "SELF_TRAINING.JITTER_STRENGTH": 0.17,
    "SELF_TRAINING.BLUR_PROBABILITY": 0.41,
    "SELF_TRAINING.MASKED.WEIGHT": 0.67,
    "SELF_TRAINING.MASKED.BLOCK_SIZE": 16,
    "SELF_TRAINING.MASKED.RATIO": 0.61,
    "SELF_TRAINING.MASKED.IMAGES": "pair",
    "SELF_TRAINING.MASKED.AUGMENT": False,
    "SELF_TRAINING.FEATURE_DISTANCE.CLASSES": (1, 3),
    "SELF_TRAINING.FEATURE_DISTANCE.MIN_RATIO": 0.57,
    "PROTOTYPES.NUM_PER_CLASS": 3,
    "PROTOTYPES.DIM": 12,
    "PROTOTYPES.MOMENTUM": 0.97,
    "PROTOTYPES.SIMILARITY_SCALE": "sum",
    "PROTOTYPES.MIN_VARIANCE": 0.06,
    "PROTOTYPES.TEMPERATURE": 0.37,
    "PROTOTYPES.CONTRAST_WEIGHT": 0.31,
    "PROTOTYPES.CONSISTENCY_WEIGHT": 0.47,
    "PROTOTYPES.CONTRAST_VIEWS": ("source",),
    "PROTOTYPES.IN_CLASS_NEGATIVES": False,
    "PROTOTYPES.CONSISTENCY_WEIGHTED": False,
    "PROTOTYPES.CLUSTER_POOL": "batch",
    "PROTOTYPES.SINKHORN.EPSILON": 0.07,
    "PROTOTYPES.SINKHORN.SWEEPS": 7,
    "PROTOTYPES.BANK.SIZE": 90,
    "PROTOTYPES.BANK.SAMPLES_PER_IMAGE": 19,
    "PROTOTYPES.INIT.ITER": 23,
    "PROTOTYPES.INIT.MIN_SAMPLES": 5,
    "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": 0.77,
    "DATALOADER.RARE_CLASS.MIN_CROP_FRACTION": 0.009,
    "INPUT.COLOR_AUG_SSD": True,
    "SEED": 29,
}


def found(cfg) -> dict[str, object]:
    """What the parts of a run, built from a config, hold in the place of each key."""
    student = build_model(cfg)
    teacher = EMATeacher.from_config(cfg, student)
    hook = AdaptationHook.from_config(cfg, student, teacher)
    criterion = Criterion.from_config(cfg, student.prototype_head)
    source, target = SourceMapper.from_config(cfg), TargetMapper.from_config(cfg)
    label, augment, masking = hook.pseudo_labels, hook.augment, hook.masking
    learner, losses = hook.learner, criterion.prototype_losses
    bank, prototypes = learner.banks["context"], learner.prototypes
    assert criterion.detail_weight == losses.detail_weight
    assert augment.pixel_mean.flatten().tolist() == pytest.approx(cfg.MODEL.PIXEL_MEAN)
    assert augment.pixel_std.flatten().tolist() == pytest.approx(cfg.MODEL.PIXEL_STD)
    return {
        "MODEL.HRDA.DETAIL_WEIGHT": criterion.detail_weight,
        "SELF_TRAINING.TEACHER_MOMENTUM": teacher.momentum,
        "SELF_TRAINING.TEACHER_STATISTICS": teacher.statistics,
        "SELF_TRAINING.CONFIDENCE_THRESHOLD": label.threshold,
        "SELF_TRAINING.CONFIDENCE": label.scope,
        "SELF_TRAINING.IGNORE_TOP": target.crop_margins[0],
        "SELF_TRAINING.IGNORE_BOTTOM": target.crop_margins[1],
        "SELF_TRAINING.IGNORE_MARGINS": target.margins,
        "SELF_TRAINING.JITTER_PROBABILITY": augment.jitter_probability,
        "SELF_TRAINING.JITTER_STRENGTH": augment.jitter_strength,
        "SELF_TRAINING.BLUR_PROBABILITY": augment.blur_probability,
        "SELF_TRAINING.MASKED.WEIGHT": criterion.masked_weight,
        "SELF_TRAINING.MASKED.BLOCK_SIZE": masking.block_size,
        "SELF_TRAINING.MASKED.RATIO": masking.ratio,
        "SELF_TRAINING.MASKED.IMAGES": masking.images,
        "SELF_TRAINING.MASKED.AUGMENT": masking.augment,
        "SELF_TRAINING.FEATURE_DISTANCE.CLASSES": tuple(criterion.distance_classes),
        "SELF_TRAINING.FEATURE_DISTANCE.MIN_RATIO": criterion.distance_min_ratio,
        "PROTOTYPES.NUM_PER_CLASS": prototypes.mean.shape[1],
        "PROTOTYPES.DIM": prototypes.mean.shape[2],
        "PROTOTYPES.MOMENTUM": prototypes.momentum,
        "PROTOTYPES.SIMILARITY_SCALE": {1: "sum", 12: "mean"}[prototypes.divisor],
        "PROTOTYPES.MIN_VARIANCE": prototypes.min_variance,
        "PROTOTYPES.TEMPERATURE": losses.temperature,
        "PROTOTYPES.CONTRAST_WEIGHT": losses.contrast_weight,
        "PROTOTYPES.CONSISTENCY_WEIGHT": losses.consistency_weight,
        "PROTOTYPES.CONTRAST_VIEWS": losses.contrast_views,
        "PROTOTYPES.IN_CLASS_NEGATIVES": losses.in_class_negatives,
        "PROTOTYPES.CONSISTENCY_WEIGHTED": losses.consistency_weighted,
        "PROTOTYPES.CLUSTER_POOL": learner.pool,
        "PROTOTYPES.SINKHORN.EPSILON": round(learner.epsilon / cfg.PROTOTYPES.DIM, 6),
        "PROTOTYPES.SINKHORN.SWEEPS": learner.sweeps,
        "PROTOTYPES.BANK.SIZE": bank.features.shape[1],
        "PROTOTYPES.BANK.SAMPLES_PER_IMAGE": bank.samples_per_image,
        "PROTOTYPES.INIT.ITER": learner.start_iter,
        "PROTOTYPES.INIT.MIN_SAMPLES": learner.start_samples,
        "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA": source.single_category_max_area,
        "DATALOADER.RARE_CLASS.MIN_CROP_FRACTION": source.min_crop_fraction,
        "INPUT.COLOR_AUG_SSD": source.photometric_distortion,
        "SEED": learner.seed,
    }


def test_each_key_reaches_its_place(tiny_cfg):
    margins = "SELF_TRAINING.IGNORE_MARGINS"  # refused beside those of the crop
    values = VALUES | {margins: (0.0, 0.0, 0.0, 0.0)}
    cfg = tiny_cfg("mic_gauss", *(word for item in values.items() for word in item)).clone()
    cfg.defrost()
    cfg.merge_from_list([margins, VALUES[margins]])
    assert found(cfg) == VALUES


OF_CENTROIDS = {
    "PROTOTYPES.NORMALIZE": "l2",
    "PROTOTYPES.DISTANCE": "euclidean",
    "PROTOTYPES.POOL_SIZE": 700,
    "PROTOTYPES.INIT.METHOD": "random",
    "TEST.SLIDE.CROP": (48, 64),
    "TEST.SLIDE.STRIDE": (24, 40),
    "TEST.SLIDE.BATCH": 3,
}


def test_keys_of_centroids_and_windows_reach_their_places(tiny_cfg):
    words = (word for item in OF_CENTROIDS.items() for word in item)
    cfg = tiny_cfg("daformer_centroid", "TEST.INFERENCE", "slide", *words)
    student = build_model(cfg)
    head, windows = student.prototype_head, student.inference.keywords
    learner = PrototypeLearner.from_config(cfg, head)
    assert {
        "PROTOTYPES.NORMALIZE": head.normalize,
        "PROTOTYPES.DISTANCE": head.prototypes.distance,
        "PROTOTYPES.POOL_SIZE": learner.pool_size,
        "PROTOTYPES.INIT.METHOD": learner.start_method,
        "TEST.SLIDE.CROP": tuple(windows["crop"]),
        "TEST.SLIDE.STRIDE": tuple(windows["stride"]),
        "TEST.SLIDE.BATCH": windows["batch_size"],
    } == OF_CENTROIDS


def test_keys_of_the_decode_head_reach_all_that_is_built_like_it(tiny_cfg):
    keys = ("NORM", "FrozenBN", "DILATIONS", (1, 3), "DROPOUT", 0.37)
    named = [f"MODEL.SEM_SEG_HEAD.{k}" if n % 2 == 0 else k for n, k in enumerate(keys)]
    student = build_model(tiny_cfg("hrda_gauss", *named))
    fusions = (student.sem_seg_head.fusion, student.prototype_head.fusion)
    for part in (*fusions, student.scale_attention):
        norms = [unit.bn for unit in part.modules() if hasattr(unit, "bn")]
        assert norms and all(isinstance(norm, FrozenBatchNorm2d) for norm in norms)
    for fusion in fusions:
        of_branches = [getattr(branch, "dw", branch).conv.dilation for branch in fusion.branches]
        assert of_branches == [(1, 1), (3, 3)]
    assert student.sem_seg_head.dropout.p == student.scale_attention.dropout.p == 0.37
