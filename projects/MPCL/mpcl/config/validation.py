"""Refuses, before anything is built, a config that could not be trained as written."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY
from fvcore.common.registry import Registry

from ..modeling.mit import VARIANTS
from .reading import get

_CHOICES = {
    "DATALOADER.ON_BAD_FILE": ("error", "skip"),
    "INPUT.CROP.TYPE": ("absolute",),
    "INPUT.FORMAT": ("RGB",),
    "INPUT.RANDOM_FLIP": ("horizontal", "none"),
    "SELF_TRAINING.CONFIDENCE": ("batch", "image"),
    "SELF_TRAINING.MASKED.IMAGES": ("target", "pair"),
    "SELF_TRAINING.TEACHER_STATISTICS": ("student", "target"),
    "PROTOTYPES.TYPE": ("none", "centroid", "gauss"),
    "PROTOTYPES.HEAD": ("shared", "separate"),
    "PROTOTYPES.NORMALIZE": ("layer", "l2", "none"),
    "PROTOTYPES.DISTANCE": ("squared", "euclidean"),
    "PROTOTYPES.SIMILARITY_SCALE": ("mean", "sum"),
    "PROTOTYPES.CLUSTER_POOL": ("bank", "batch"),
    "PROTOTYPES.INIT.METHOD": ("kmeans", "random"),
    "SOLVER.AMP.PRECISION": ("bfloat16", "float16"),
    "TEST.INFERENCE": ("whole", "slide"),
    "TEST.OUTPUT": ("classifier", "prototypes"),
}

_REGISTRIES: dict[str, Registry] = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
}

Test = Callable[[float], bool]
# What the numbers of some keys must be, in words and as a test; keys stand below their group.
_RANGES: tuple[tuple[str, Test, dict[str, str]], ...] = (
    (
        "above 0",
        lambda v: v > 0,
        {
            "SOLVER": "BASE_LR HEAD_LR_FACTOR",
            "PROTOTYPES": "TEMPERATURE MIN_VARIANCE SINKHORN.EPSILON",
            "DATALOADER": "RARE_CLASS.TEMPERATURE",
        },
    ),
    (
        "0 or more",
        lambda v: v >= 0,
        {
            "SEED": "",
            "VIS_PERIOD": "",
            "SOLVER": "WEIGHT_DECAY WEIGHT_DECAY_NORM WARMUP_ITERS POLY_POWER",
            "SELF_TRAINING": "JITTER_STRENGTH MASKED.WEIGHT FEATURE_DISTANCE.WEIGHT",
            "PROTOTYPES": "CONTRAST_WEIGHT CONSISTENCY_WEIGHT INIT.ITER GRADIENT_SHARE_PERIOD",
            "DATALOADER": "NUM_WORKERS MAX_BAD_FILES",
            "TEST": "EVAL_PERIOD",
        },
    ),
    (
        "1 or more",
        lambda v: v >= 1,
        {
            "LOG_PERIOD": "",
            "SOLVER": "MAX_ITER IMS_PER_BATCH ACCUMULATE CHECKPOINT_PERIOD",
            "PROTOTYPES": "NUM_PER_CLASS DIM POOL_SIZE SINKHORN.SWEEPS BANK.SIZE "
            "BANK.SAMPLES_PER_IMAGE INIT.MIN_SAMPLES DEAD_AFTER",
            "MODEL.SEM_SEG_HEAD": "CONVS_DIM",
            "TEST": "SLIDE.BATCH",
        },
    ),
    (
        "from 0 to 1",
        lambda v: 0 <= v <= 1,
        {
            "SOLVER": "WARMUP_FACTOR",
            "SELF_TRAINING": "TEACHER_MOMENTUM CONFIDENCE_THRESHOLD JITTER_PROBABILITY "
            "BLUR_PROBABILITY MASKED.RATIO FEATURE_DISTANCE.MIN_RATIO",
            "PROTOTYPES": "MOMENTUM",
            "MODEL.HRDA": "DETAIL_WEIGHT",
        },
    ),
    (
        "from 0 to below 1",
        lambda v: 0 <= v < 1,
        {
            "SELF_TRAINING": "IGNORE_TOP IGNORE_BOTTOM",
            "DATALOADER": "RARE_CLASS.MIN_IMAGE_FRACTION RARE_CLASS.MIN_CROP_FRACTION",
            "MODEL": "MIT.DROP_PATH TIMM.DROP_PATH SEM_SEG_HEAD.DROPOUT",
        },
    ),
    (
        "above 0, at most 1",
        lambda v: 0 < v <= 1,
        {"SOLVER": "LAYER_DECAY", "INPUT": "CROP.SINGLE_CATEGORY_MAX_AREA"},
    ),
    ("from 1 to 255", lambda v: 1 <= v <= 255, {"MODEL.SEM_SEG_HEAD": "NUM_CLASSES"}),
    ("255", lambda v: v == 255, {"MODEL.SEM_SEG_HEAD": "IGNORE_VALUE"}),
)


def expectations() -> dict[str, str]:
    """In words, what the values of single keys are held to: "one of ...", "0 or more"."""
    words = {key: f"one of {', '.join(known)}" for key, known in _CHOICES.items()}
    for expected, _, groups in _RANGES:
        for group, names in groups.items():
            words |= {f"{group}.{name}".rstrip("."): expected for name in names.split() or [""]}
    return words


def validate(cfg: CN) -> None:
    """Refuses a config that could not be trained as written; looks at nothing but the config.

    Raises:
        ValueError: naming the key, its value and what was expected.
    """
    for key, known in _CHOICES.items():
        _expect(get(cfg, key) in known, cfg, key, f"one of {', '.join(known)}")
    for key, registry in _REGISTRIES.items():
        names = [name for name, _ in registry]
        _expect(get(cfg, key) in names, cfg, key, f"one of {', '.join(names)}")
    for words, test, groups in _RANGES:
        for group, names in groups.items():
            for key in [f"{group}.{name}" for name in names.split()] or [group]:
                _expect(math.isfinite(get(cfg, key)) and test(get(cfg, key)), cfg, key, words)
    if cfg.MODEL.BACKBONE.NAME == "MixTransformer":
        _expect(cfg.MODEL.MIT.VARIANT in VARIANTS, cfg, "MODEL.MIT.VARIANT", ", ".join(VARIANTS))
    _validate_sizes(cfg)
    _validate_views(cfg)
    _validate_scales(cfg)
    _validate_masking(cfg)
    _validate_combinations(cfg)


def _expect(condition: bool, cfg: CN, key: str, expected: str) -> None:
    if not condition:
        value = get(cfg, key)
        value = tuple(value) if isinstance(value, list) else value
        raise ValueError(f"{key} is {value!r}; expected {expected}")


def _are_numbers(values: Any, count: int, kind: type | tuple[type, ...], least: int) -> bool:
    return len(values) == count and all(isinstance(v, kind) and v >= least for v in values)


def _validate_sizes(cfg: CN) -> None:
    for key in (
        "INPUT.CROP.SIZE",
        "TEST.SLIDE.CROP",
        "TEST.SLIDE.STRIDE",
        "MODEL.HRDA.DETAIL_SIZE",
    ):
        fits = _are_numbers(get(cfg, key), 2, int, least=1)
        _expect(fits, cfg, key, "(height, width), two whole numbers above 0")
    for key in ("INPUT.SOURCE_SIZE", "INPUT.TARGET_SIZE"):
        value = get(cfg, key)
        fits = _are_numbers(value, 2, int, least=0) and all(value) == any(value)
        _expect(fits, cfg, key, "(width, height) above 0, or (0, 0) for the images' own size")
    stride, crop = cfg.TEST.SLIDE.STRIDE, cfg.TEST.SLIDE.CROP
    within = all(s <= c for s, c in zip(stride, crop))
    _expect(within, cfg, "TEST.SLIDE.STRIDE", f"at most TEST.SLIDE.CROP {tuple(crop)}: else gaps")
    st = cfg.SELF_TRAINING
    margins = st.IGNORE_MARGINS
    fits = _are_numbers(margins, 4, (int, float), least=0)
    fits = fits and margins[0] + margins[1] < 1 and margins[2] + margins[3] < 1
    shares = "four shares (top, bottom, left, right) that leave some of the image"
    _expect(fits, cfg, "SELF_TRAINING.IGNORE_MARGINS", shares)
    if st.IGNORE_TOP + st.IGNORE_BOTTOM >= 1:
        raise ValueError(
            f"SELF_TRAINING.IGNORE_TOP {st.IGNORE_TOP} and IGNORE_BOTTOM {st.IGNORE_BOTTOM} leave "
            "nothing of the crop; expected a sum below 1"
        )


def _validate_views(cfg: CN) -> None:
    views = set(cfg.PROTOTYPES.CONTRAST_VIEWS)
    if not views:
        raise ValueError(
            "PROTOTYPES.CONTRAST_VIEWS is empty; to switch the contrast off, set "
            "PROTOTYPES.CONTRAST_WEIGHT to 0"
        )
    if unknown := views - {"source", "mixed", "target"}:
        raise ValueError(
            f"PROTOTYPES.CONTRAST_VIEWS holds {sorted(map(str, unknown))}; "
            "expected some of source, mixed, target"
        )
    if {"mixed", "target"} <= views:
        raise ValueError(
            "PROTOTYPES.CONTRAST_VIEWS: 'target' is a part of 'mixed'; name one of them"
        )


def _validate_scales(cfg: CN) -> None:
    multi_resolution = cfg.MODEL.META_ARCHITECTURE == "HRDASegmentor"
    scales = tuple(cfg.PROTOTYPES.SCALES)
    known = (("context",), ("context", "detail"))
    _expect(scales in known, cfg, "PROTOTYPES.SCALES", "('context',) or ('context', 'detail')")
    if "detail" in scales and not multi_resolution:
        raise ValueError(
            "PROTOTYPES.SCALES holds 'detail', which only MODEL.META_ARCHITECTURE HRDASegmentor "
            f"sees; it is {cfg.MODEL.META_ARCHITECTURE}"
        )
    sizes = {"MODEL.HRDA.DETAIL_SIZE": 16, "INPUT.CROP.SIZE": 8, "TEST.SLIDE.CROP": 8}
    for key, multiple in sizes.items() if multi_resolution else ():
        if any(side % multiple for side in get(cfg, key)):
            raise ValueError(
                f"{key} is {tuple(get(cfg, key))}; HRDASegmentor expects multiples of {multiple}"
            )


def _validate_masking(cfg: CN) -> None:
    st = cfg.SELF_TRAINING
    if st.MASKED.WEIGHT and not 0 < st.MASKED.BLOCK_SIZE <= min(cfg.INPUT.CROP.SIZE):
        raise ValueError(
            f"SELF_TRAINING.MASKED.BLOCK_SIZE is {st.MASKED.BLOCK_SIZE}; expected at most the "
            f"side of the crop, INPUT.CROP.SIZE {tuple(cfg.INPUT.CROP.SIZE)}"
        )
    if any(st.IGNORE_MARGINS) and (st.IGNORE_TOP or st.IGNORE_BOTTOM):
        raise ValueError(
            "SELF_TRAINING.IGNORE_MARGINS (of the image) and IGNORE_TOP, IGNORE_BOTTOM (of the "
            "crop) exclude each other; set one of them to 0"
        )


def _validate_combinations(cfg: CN) -> None:
    st, proto, num_classes = cfg.SELF_TRAINING, cfg.PROTOTYPES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if proto.TYPE != "none" and not st.ENABLED:
        raise ValueError(
            "PROTOTYPES.TYPE needs SELF_TRAINING.ENABLED: prototypes are learned from mixed images"
        )
    if proto.TYPE != "none" and proto.NUM_PER_CLASS > proto.BANK.SIZE:
        raise ValueError(
            f"PROTOTYPES.NUM_PER_CLASS is {proto.NUM_PER_CLASS}; expected at most the embeddings "
            f"that are banked for a class, PROTOTYPES.BANK.SIZE {proto.BANK.SIZE}"
        )
    if st.ENABLED and st.FEATURE_DISTANCE.WEIGHT > 0:
        if not cfg.MODEL.WEIGHTS:
            raise ValueError(
                "SELF_TRAINING.FEATURE_DISTANCE.WEIGHT > 0 compares with the ImageNet encoder in "
                "MODEL.WEIGHTS, which is empty; name a weight file, or set the weight to 0 to "
                "train from random initialisation"
            )
        classes = st.FEATURE_DISTANCE.CLASSES
        fits = all(isinstance(c, int) and 0 <= c < num_classes for c in classes)
        expected = f"class indices below MODEL.SEM_SEG_HEAD.NUM_CLASSES {num_classes}"
        _expect(fits, cfg, "SELF_TRAINING.FEATURE_DISTANCE.CLASSES", expected)
    if cfg.TEST.OUTPUT == "prototypes" and proto.TYPE == "none":
        raise ValueError("TEST.OUTPUT prototypes needs PROTOTYPES.TYPE centroid or gauss")


ClassSubsets = Sequence[tuple[str, Sequence[str]]]
"""(name, classes): the mean IoU of the classes is reported as ``mIoU-<name>``."""


def check_class_subsets(class_subsets: ClassSubsets, class_names: Sequence[str]) -> None:
    """Raises ValueError unless each subset is a name of its own and a list of known classes."""
    names = []
    for subset in class_subsets:
        if isinstance(subset, str) or len(subset) != 2 or isinstance(subset[1], str):
            raise ValueError(
                f"TEST.CLASS_SUBSETS holds {subset!r}; expected [name, [class, class, ...]]"
            )
        name, classes = subset
        unknown = [c for c in classes if c not in class_names]
        if unknown or not classes or len(set(classes)) != len(classes):
            raise ValueError(
                f"TEST.CLASS_SUBSETS: subset {name!r} holds {unknown or list(classes)}; expected "
                f"one or more of {', '.join(class_names)}, each once"
            )
        names.append(str(name))
    if len(set(names)) != len(names):
        raise ValueError(f"TEST.CLASS_SUBSETS names a subset twice: {', '.join(names)}")
