"""Refuses, before anything is built, a config that could not be trained as written."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from detectron2.config import CfgNode as CN
from detectron2.config import get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, SEM_SEG_HEADS_REGISTRY

from ..losses.prototype import VIEWS
from ..modeling.mit import VARIANTS
from ..prototypes import TYPES
from ..prototypes.base import SIMILARITY_SCALES
from ..prototypes.centroid import DISTANCES
from ..prototypes.embedding import NORMALIZATIONS
from ..prototypes.learner import POOLS, STARTS
from ..self_training.masking import IMAGES
from ..self_training.pseudo_label import SCOPES
from ..self_training.teacher import STATISTICS
from ..utils.ignore_label import IGNORE_LABEL
from ..utils.short import short
from .reading import get, leaves

# Detectron2's keys that are read here; the others keep their values.
_READ = (
    *("SEED", "VIS_PERIOD", "OUTPUT_DIR", "CUDNN_BENCHMARK", "DATASETS.TRAIN", "DATASETS.TEST"),
    *("INPUT.RANDOM_FLIP", "INPUT.CROP.SIZE", "DATALOADER.NUM_WORKERS", "TEST.EVAL_PERIOD"),
    *("SOLVER.IMS_PER_BATCH", "SOLVER.BASE_LR", "SOLVER.MAX_ITER", "SOLVER.CHECKPOINT_PERIOD"),
    *("SOLVER.WARMUP_ITERS", "SOLVER.WARMUP_FACTOR", "SOLVER.WEIGHT_DECAY"),
    *("SOLVER.WEIGHT_DECAY_NORM", "SOLVER.AMP.ENABLED"),
    *("TEST.AUG.ENABLED", "TEST.AUG.MIN_SIZES", "TEST.AUG.MAX_SIZE", "TEST.AUG.FLIP"),
)
_READ_GROUPS = ("MODEL.", "SOLVER.CLIP_GRADIENTS.")
_LARGEST = 16384  # side of a crop or window
_MANY = 10**9  # iterations, or of what nobody counts further


def validate(cfg: CN, defaults: CN) -> None:
    """Refuses a config that could not be trained as written; looks at nothing but the config.

    Args:
        cfg: where ``MODEL.PIXEL_MEAN`` and ``PIXEL_STD`` may still be empty.
        defaults: the project's; Detectron2's keys that nothing reads must equal them.
    Raises: ValueError: naming the key, its value and what was expected.
    """
    _check_unread(cfg, defaults)
    _check_data(cfg)
    _check_model(cfg)
    _check_self_training(cfg)
    _check_prototypes(cfg)
    _check_solver(cfg)
    _check_test(cfg)


def _check_unread(cfg: CN, defaults: CN) -> None:
    for key in leaves(get_cfg()):
        ours, read = get(defaults, key), key in _READ or key.startswith(_READ_GROUPS)
        if not read and get(cfg, key) != ours:
            _refuse(cfg, key, f"{ours!r}: nothing here reads this key of Detectron2")


def _check_data(cfg: CN) -> None:
    for key in ("DATASETS.TRAIN", "DATASETS.TRAIN_TARGET", "DATASETS.TEST", "DATASETS.FILES"):
        if not all(isinstance(name, str) for name in get(cfg, key)):
            _refuse(cfg, key, "a list of texts")
    _check_shares(cfg)
    _one_of(cfg, "INPUT.RANDOM_FLIP", ("horizontal", "none"))
    for key in ("INPUT.SOURCE_SIZE", "INPUT.TARGET_SIZE"):
        size = get(cfg, key)
        if len(size) != 2 or not _are_whole(size, 0, _LARGEST) or all(size) != any(size):
            _refuse(cfg, key, "(width, height) above 0, or (0, 0) for the images' own size")
    _size(cfg, "INPUT.CROP.SIZE")
    _number(cfg, "INPUT.CROP.SINGLE_CATEGORY_MAX_AREA", above=0, most=1)
    _number(cfg, "DATALOADER.NUM_WORKERS", least=0, most=1000)
    _one_of(cfg, "DATALOADER.ON_BAD_FILE", ("error", "skip"))
    _number(cfg, "DATALOADER.MAX_BAD_FILES", least=0, most=_MANY)
    _number(cfg, "DATALOADER.RARE_CLASS.TEMPERATURE", above=0)
    _number(cfg, "DATALOADER.RARE_CLASS.MIN_IMAGE_FRACTION", least=0, below=1)
    _number(cfg, "DATALOADER.RARE_CLASS.MIN_CROP_FRACTION", least=0, below=1)


def _check_shares(cfg: CN) -> None:
    domains = [sorted(cfg.DATASETS.TRAIN), sorted(cfg.DATASETS.TRAIN_TARGET)]
    expected = (
        "a list of [name, number above 0] that names each set of DATASETS.TRAIN, or of "
        "TRAIN_TARGET, or of both once"
    )
    for pair in cfg.DATASETS.SHARES:
        whole = isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
        if not whole or not _are_numbers(pair[1:], 1) or not pair[1]:
            _refuse(cfg, "DATASETS.SHARES", expected)
    names = sorted(name for name, _ in cfg.DATASETS.SHARES)
    if names not in ([], *domains, sorted(domains[0] + domains[1])):
        _refuse(cfg, "DATASETS.SHARES", expected)


def _check_model(cfg: CN) -> None:
    model, head = cfg.MODEL, cfg.MODEL.SEM_SEG_HEAD
    _one_of(cfg, "MODEL.META_ARCHITECTURE", (name for name, _ in META_ARCH_REGISTRY))
    _one_of(cfg, "MODEL.BACKBONE.NAME", (name for name, _ in BACKBONE_REGISTRY))
    _one_of(cfg, "MODEL.SEM_SEG_HEAD.NAME", (name for name, _ in SEM_SEG_HEADS_REGISTRY))
    if model.BACKBONE.NAME == "MixTransformer":
        _one_of(cfg, "MODEL.MIT.VARIANT", VARIANTS)
    for key in ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"):
        values = get(cfg, key)
        if values and not _are_numbers(values, 3):
            _refuse(cfg, key, "three numbers, of red, green and blue")
    if not all(model.PIXEL_STD):
        _refuse(cfg, "MODEL.PIXEL_STD", "three numbers above 0")
    _number(cfg, "MODEL.BACKBONE.FREEZE_AT", least=0, most=5)
    _one_of(cfg, "MODEL.RESNETS.DEPTH", (18, 34, 50, 101, 152))
    _number(cfg, "MODEL.BACKBONE.DROP_PATH", least=0, below=1)
    _number(cfg, "MODEL.SEM_SEG_HEAD.NUM_CLASSES", least=1, most=IGNORE_LABEL)
    _one_of(cfg, "MODEL.SEM_SEG_HEAD.IGNORE_VALUE", (IGNORE_LABEL,))
    _number(cfg, "MODEL.SEM_SEG_HEAD.CONVS_DIM", least=1, most=10**4)
    _number(cfg, "MODEL.SEM_SEG_HEAD.DROPOUT", least=0, below=1)
    if head.NAME == "DAFormerHead":
        _one_of(cfg, "MODEL.SEM_SEG_HEAD.NORM", ("BN", "SyncBN", "FrozenBN", "GN", "LN", ""))
        if not head.DILATIONS or not _are_whole(head.DILATIONS, 1, 1000):
            _refuse(cfg, "MODEL.SEM_SEG_HEAD.DILATIONS", "whole numbers from 1 to 1000")
    _size(cfg, "MODEL.HRDA.DETAIL_SIZE")
    _number(cfg, "MODEL.HRDA.DETAIL_WEIGHT", least=0, most=1)
    if model.META_ARCHITECTURE == "HRDASegmentor":
        _multiple(cfg, "MODEL.HRDA.DETAIL_SIZE", 16)
        _multiple(cfg, "INPUT.CROP.SIZE", 8)
        _multiple(cfg, "TEST.SLIDE.CROP", 8)


def _check_self_training(cfg: CN) -> None:
    st = cfg.SELF_TRAINING
    _number(cfg, "SELF_TRAINING.TEACHER_MOMENTUM", least=0, below=1)
    _one_of(cfg, "SELF_TRAINING.TEACHER_STATISTICS", STATISTICS)
    _number(cfg, "SELF_TRAINING.CONFIDENCE_THRESHOLD", least=0, most=1)
    _one_of(cfg, "SELF_TRAINING.CONFIDENCE", SCOPES)
    _number(cfg, "SELF_TRAINING.JITTER_PROBABILITY", least=0, most=1)
    _number(cfg, "SELF_TRAINING.JITTER_STRENGTH", least=0)
    _number(cfg, "SELF_TRAINING.BLUR_PROBABILITY", least=0, most=1)
    _check_margins(cfg)
    _number(cfg, "SELF_TRAINING.MASKED.WEIGHT", least=0)
    _number(cfg, "SELF_TRAINING.MASKED.RATIO", least=0, most=1)
    _one_of(cfg, "SELF_TRAINING.MASKED.IMAGES", IMAGES)
    crop = tuple(cfg.INPUT.CROP.SIZE)
    _number(cfg, "SELF_TRAINING.MASKED.BLOCK_SIZE", least=1, most=_LARGEST)
    if st.MASKED.WEIGHT and min(crop) < st.MASKED.BLOCK_SIZE:
        expected = f"at most the side of the crop, INPUT.CROP.SIZE {crop}"
        _refuse(cfg, "SELF_TRAINING.MASKED.BLOCK_SIZE", expected)
    _number(cfg, "SELF_TRAINING.FEATURE_DISTANCE.WEIGHT", least=0)
    _number(cfg, "SELF_TRAINING.FEATURE_DISTANCE.MIN_RATIO", least=0, most=1)
    if st.ENABLED and st.FEATURE_DISTANCE.WEIGHT:
        _check_feature_distance(cfg)
    _number(cfg, "SELF_TRAINING.COLLAPSE.MIN_ENTROPY", least=0, most=1)
    _number(cfg, "SELF_TRAINING.COLLAPSE.MIN_CONFIDENT", least=0, most=1)
    _number(cfg, "SELF_TRAINING.COLLAPSE.AFTER", least=0, most=_MANY)


def _check_margins(cfg: CN) -> None:
    st, margins = cfg.SELF_TRAINING, cfg.SELF_TRAINING.IGNORE_MARGINS
    _number(cfg, "SELF_TRAINING.IGNORE_TOP", least=0, below=1)
    _number(cfg, "SELF_TRAINING.IGNORE_BOTTOM", least=0, below=1)
    if st.IGNORE_TOP + st.IGNORE_BOTTOM >= 1:
        raise ValueError(
            f"SELF_TRAINING.IGNORE_TOP {st.IGNORE_TOP} and IGNORE_BOTTOM {st.IGNORE_BOTTOM} leave "
            "nothing of the crop; expected a sum below 1"
        )
    if not _are_numbers(margins, 4) or margins[0] + margins[1] >= 1 or margins[2] + margins[3] >= 1:
        expected = "four shares (top, bottom, left, right) that leave some of the image"
        _refuse(cfg, "SELF_TRAINING.IGNORE_MARGINS", expected)
    if any(margins) and (st.IGNORE_TOP or st.IGNORE_BOTTOM):
        raise ValueError(
            "SELF_TRAINING.IGNORE_MARGINS (of the image) and IGNORE_TOP, IGNORE_BOTTOM (of the "
            "crop) exclude each other; set one of them to 0"
        )


def _check_feature_distance(cfg: CN) -> None:
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "SELF_TRAINING.FEATURE_DISTANCE.WEIGHT > 0 compares with the ImageNet encoder in "
            "MODEL.WEIGHTS, which is empty; name a weight file, or set the weight to 0 to train "
            "from random initialisation"
        )
    things, classes = cfg.SELF_TRAINING.FEATURE_DISTANCE.CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if not _are_whole(things, 0, classes - 1):
        expected = f"class indices below MODEL.SEM_SEG_HEAD.NUM_CLASSES {classes}"
        _refuse(cfg, "SELF_TRAINING.FEATURE_DISTANCE.CLASSES", expected)


def _check_prototypes(cfg: CN) -> None:
    proto = cfg.PROTOTYPES
    _one_of(cfg, "PROTOTYPES.TYPE", ("none", *TYPES))
    _one_of(cfg, "PROTOTYPES.HEAD", ("shared", "separate"))
    _one_of(cfg, "PROTOTYPES.NORMALIZE", NORMALIZATIONS)
    _one_of(cfg, "PROTOTYPES.DISTANCE", DISTANCES)
    _one_of(cfg, "PROTOTYPES.SIMILARITY_SCALE", SIMILARITY_SCALES)
    _one_of(cfg, "PROTOTYPES.CLUSTER_POOL", POOLS)
    _one_of(cfg, "PROTOTYPES.INIT.METHOD", STARTS)
    _number(cfg, "PROTOTYPES.DIM", least=1, most=10**4)
    _number(cfg, "PROTOTYPES.BANK.SIZE", least=1, most=10**7)
    _number(cfg, "PROTOTYPES.BANK.SAMPLES_PER_IMAGE", least=1, most=10**7)
    _number(cfg, "PROTOTYPES.POOL_SIZE", least=1, most=10**7)
    _number(cfg, "PROTOTYPES.NUM_PER_CLASS", least=1, most=1000)
    _number(cfg, "PROTOTYPES.MIN_VARIANCE", above=0)
    _number(cfg, "PROTOTYPES.MOMENTUM", least=0, below=1)
    _number(cfg, "PROTOTYPES.TEMPERATURE", above=0)
    _number(cfg, "PROTOTYPES.CONTRAST_WEIGHT", least=0)
    _number(cfg, "PROTOTYPES.CONSISTENCY_WEIGHT", least=0)
    _number(cfg, "PROTOTYPES.SINKHORN.EPSILON", above=0)
    _number(cfg, "PROTOTYPES.SINKHORN.SWEEPS", least=1, most=10**4)
    _number(cfg, "PROTOTYPES.INIT.ITER", least=0, most=_MANY)
    _number(cfg, "PROTOTYPES.INIT.MIN_SAMPLES", least=1, most=10**7)
    _number(cfg, "PROTOTYPES.GRADIENT_SHARE_PERIOD", least=0, most=_MANY)
    _check_views_and_scales(cfg)
    if proto.TYPE != "none" and not cfg.SELF_TRAINING.ENABLED:
        raise ValueError(
            "PROTOTYPES.TYPE needs SELF_TRAINING.ENABLED: prototypes are learned from mixed images"
        )
    if proto.TYPE != "none" and proto.NUM_PER_CLASS > proto.BANK.SIZE:
        banked = f"the embeddings banked for a class, PROTOTYPES.BANK.SIZE {proto.BANK.SIZE}"
        _refuse(cfg, "PROTOTYPES.NUM_PER_CLASS", f"at most {banked}")


def _check_views_and_scales(cfg: CN) -> None:
    views = set(map(str, cfg.PROTOTYPES.CONTRAST_VIEWS))
    scales = tuple(cfg.PROTOTYPES.SCALES)
    if not views or not views <= set(VIEWS):
        expected = "some of source, mixed, target (or set PROTOTYPES.CONTRAST_WEIGHT to 0)"
        _refuse(cfg, "PROTOTYPES.CONTRAST_VIEWS", expected)
    if {"mixed", "target"} <= views:
        expected = "one of 'mixed' and 'target', which is a part of 'mixed'"
        _refuse(cfg, "PROTOTYPES.CONTRAST_VIEWS", expected)
    if scales not in (("context",), ("context", "detail")):
        _refuse(cfg, "PROTOTYPES.SCALES", "('context',) or ('context', 'detail')")
    if "detail" in scales and cfg.MODEL.META_ARCHITECTURE != "HRDASegmentor":
        expected = "('context',): only MODEL.META_ARCHITECTURE HRDASegmentor sees a detail"
        _refuse(cfg, "PROTOTYPES.SCALES", expected)


def _check_solver(cfg: CN) -> None:
    _number(cfg, "SEED", least=0, most=2**31 - 1)
    _number(cfg, "VIS_PERIOD", least=0, most=_MANY)
    _number(cfg, "LOG_PERIOD", least=1, most=_MANY)
    _number(cfg, "SOLVER.IMS_PER_BATCH", least=1, most=10**4)
    _number(cfg, "SOLVER.BASE_LR", above=0)
    _number(cfg, "SOLVER.HEAD_LR_FACTOR", above=0)
    _number(cfg, "SOLVER.LAYER_DECAY", above=0, most=1)
    _number(cfg, "SOLVER.WEIGHT_DECAY", least=0)
    _number(cfg, "SOLVER.WEIGHT_DECAY_NORM", least=0)
    _number(cfg, "SOLVER.MAX_ITER", least=1, most=_MANY)
    _number(cfg, "SOLVER.WARMUP_ITERS", least=0, most=_MANY)
    _number(cfg, "SOLVER.WARMUP_FACTOR", least=0, most=1)
    _number(cfg, "SOLVER.POLY_POWER", least=0)
    _number(cfg, "SOLVER.CHECKPOINT_PERIOD", least=1, most=_MANY)
    _number(cfg, "SOLVER.CHECKPOINT_KEEP", least=0, most=_MANY)
    _number(cfg, "SOLVER.MAX_SKIPPED", least=1, most=_MANY)
    _one_of(cfg, "SOLVER.AMP.PRECISION", ("bfloat16", "float16"))
    if cfg.SOLVER.DETERMINISTIC and cfg.CUDNN_BENCHMARK:
        raise ValueError(
            "SOLVER.DETERMINISTIC and CUDNN_BENCHMARK exclude each other: which algorithm is the "
            "fastest differs from run to run"
        )


def _check_test(cfg: CN) -> None:
    _number(cfg, "TEST.EVAL_PERIOD", least=0, most=_MANY)
    _one_of(cfg, "TEST.INFERENCE", ("whole", "slide"))
    _size(cfg, "TEST.SLIDE.CROP")
    _size(cfg, "TEST.SLIDE.STRIDE")
    stride, crop = cfg.TEST.SLIDE.STRIDE, cfg.TEST.SLIDE.CROP
    if stride[0] > crop[0] or stride[1] > crop[1]:
        _refuse(cfg, "TEST.SLIDE.STRIDE", f"at most TEST.SLIDE.CROP {tuple(crop)}: else gaps")
    _number(cfg, "TEST.SLIDE.BATCH", least=1, most=1000)
    sizes = cfg.TEST.AUG.MIN_SIZES
    if not sizes or not _are_whole(sizes, 1, _LARGEST):
        _refuse(cfg, "TEST.AUG.MIN_SIZES", f"whole numbers from 1 to {_LARGEST}")
    _number(cfg, "TEST.AUG.MAX_SIZE", least=1, most=_LARGEST)
    _one_of(cfg, "TEST.OUTPUT", ("classifier", "prototypes"))
    if cfg.TEST.SELECT_ON:
        if cfg.TEST.SELECT_ON not in cfg.DATASETS.TEST:
            _refuse(cfg, "TEST.SELECT_ON", f"a set of DATASETS.TEST {tuple(cfg.DATASETS.TEST)}")
        _number(cfg, "TEST.EVAL_PERIOD", least=1, most=_MANY)
    if cfg.TEST.OUTPUT == "prototypes" and cfg.PROTOTYPES.TYPE == "none":
        raise ValueError(f"TEST.OUTPUT prototypes needs PROTOTYPES.TYPE {' or '.join(TYPES)}")


def _one_of(cfg: CN, key: str, known: Iterable[object]) -> None:
    choices = list(known)
    if get(cfg, key) not in choices:
        names = ", ".join(str(choice) or "''" for choice in choices)
        _refuse(cfg, key, f"one of {names}")


def _number(
    cfg: CN,
    key: str,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> None:
    """Holds a number to its limits; infinity and NaN are in none."""
    value = get(cfg, key)
    if not (least <= value <= most and above < value < below):
        limits = {"at least": least, "above": above, "at most": most, "below": below}
        words = [f"{word} {limit}" for word, limit in limits.items() if math.isfinite(limit)]
        both = math.isfinite(least + most)
        _refuse(cfg, key, f"from {least} to {most}" if both else " and ".join(words))


def _size(cfg: CN, key: str) -> None:
    if len(get(cfg, key)) != 2 or not _are_whole(get(cfg, key), 1, _LARGEST):
        _refuse(cfg, key, f"(height, width), two whole numbers from 1 to {_LARGEST}")


def _multiple(cfg: CN, key: str, divisor: int) -> None:
    if any(side % divisor for side in get(cfg, key)):
        _refuse(cfg, key, f"multiples of {divisor} for HRDASegmentor")


def _are_whole(values: Sequence[Any], least: int, most: int) -> bool:
    return all(isinstance(value, int) and least <= value <= most for value in values)


def _are_numbers(values: Sequence[Any], count: int) -> bool:
    numbers = all(isinstance(v, (int, float)) and 0 <= v < math.inf for v in values)
    return numbers and len(values) == count


def _refuse(cfg: CN, key: str, expected: str) -> None:
    value = get(cfg, key)
    value = tuple(value) if isinstance(value, list) else value
    raise ValueError(f"{key} is {short(value)}; expected {expected}")


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
