"""Refuses, before anything is built, a config that could not be trained as written."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

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
from ..utils.messages import short
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
# Of detectron2's detectors, and what its other segmentation heads read.
_UNREAD = (
    *("MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS", "MODEL.ROI_", "MODEL.RPN."),
    *("MODEL.ANCHOR_GENERATOR.", "MODEL.PROPOSAL_GENERATOR.", "MODEL.RETINANET."),
    *("MODEL.PANOPTIC_FPN.", "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT", "MODEL.SEM_SEG_HEAD.COMMON_STRIDE"),
)
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
    _check_run(cfg)
    _check_data(cfg)
    _check_model(cfg)
    _check_self_training(cfg)
    _check_prototypes(cfg)
    _check_solver(cfg)
    _check_test(cfg)


class _Group:
    """The keys of a group, named without it, and the checks that they share."""

    def __init__(self, cfg: CN, prefix: str) -> None:
        self.cfg, self.prefix = cfg, prefix

    def __getitem__(self, key: str) -> Any:
        return get(self.cfg, self.prefix + key)

    def refuse(self, key: str, expected: str) -> NoReturn:
        value = self[key]
        value = tuple(value) if isinstance(value, list) else value
        raise ValueError(f"{self.prefix}{key} is {short(value)}; expected {expected}")

    def one_of(self, key: str, known: Iterable[object]) -> None:
        choices = list(known)
        if self[key] not in choices:
            names = ", ".join(str(choice) or "''" for choice in choices)
            self.refuse(key, f"one of {names}")

    def numbers(
        self,
        *keys: str,
        least: float = -math.inf,
        most: float = math.inf,
        above: float = -math.inf,
        below: float = math.inf,
    ) -> None:
        """Holds numbers to their limits; infinity and NaN are in none."""
        limits = {"at least": least, "above": above, "at most": most, "below": below}
        words = [f"{word} {limit}" for word, limit in limits.items() if math.isfinite(limit)]
        both = math.isfinite(least + most)
        for key in keys:
            if not (least <= self[key] <= most and above < self[key] < below):
                self.refuse(key, f"from {least} to {most}" if both else " and ".join(words))

    def shares(self, *keys: str) -> None:
        self.numbers(*keys, least=0, most=1)

    def size(self, key: str) -> None:
        if len(self[key]) != 2 or not _are_whole(self[key], 1, _LARGEST):
            self.refuse(key, f"(height, width), two whole numbers from 1 to {_LARGEST}")

    def multiple(self, key: str, divisor: int) -> None:
        if any(side % divisor for side in self[key]):
            self.refuse(key, f"multiples of {divisor} for HRDASegmentor")


def _check_unread(cfg: CN, defaults: CN) -> None:
    for key in leaves(get_cfg()):
        of_group = key.startswith(_READ_GROUPS) and not key.startswith(_UNREAD)
        ours, read = get(defaults, key), key in _READ or of_group
        if not read and _plain(get(cfg, key)) != _plain(ours):
            _Group(cfg, "").refuse(key, f"{ours!r}: nothing here reads this key of Detectron2")


def _plain(value: Any) -> Any:
    """With lists for tuples, as a file has them."""
    return [*map(_plain, value)] if isinstance(value, (list, tuple)) else value


def _check_run(cfg: CN) -> None:
    run = _Group(cfg, "")
    run.numbers("SEED", least=0, most=2**31 - 1)
    run.numbers("VIS_PERIOD", least=0, most=_MANY)
    run.numbers("LOG_PERIOD", least=1, most=_MANY)


def _check_data(cfg: CN) -> None:
    sets, images, loader = (_Group(cfg, name) for name in ("DATASETS.", "INPUT.", "DATALOADER."))
    for key in ("TRAIN", "TRAIN_TARGET", "TEST", "FILES"):
        if not all(isinstance(name, str) for name in sets[key]):
            sets.refuse(key, "a list of texts")
    _check_shares(sets)
    images.one_of("RANDOM_FLIP", ("horizontal", "none"))
    for key in ("SOURCE_SIZE", "TARGET_SIZE"):
        size = images[key]
        if len(size) != 2 or not _are_whole(size, 0, _LARGEST) or all(size) != any(size):
            images.refuse(key, "(width, height) above 0, or (0, 0) for the images' own size")
    images.size("CROP.SIZE")
    images.numbers("CROP.SINGLE_CATEGORY_MAX_AREA", above=0, most=1)
    loader.numbers("NUM_WORKERS", least=0, most=1000)
    loader.one_of("ON_BAD_FILE", ("error", "skip"))
    loader.numbers("MAX_BAD_FILES", least=0, most=_MANY)
    loader.numbers("RARE_CLASS.TEMPERATURE", above=0)
    shares = ("RARE_CLASS.MIN_IMAGE_FRACTION", "RARE_CLASS.MIN_CROP_FRACTION")
    loader.numbers(*shares, least=0, below=1)


def _check_shares(sets: _Group) -> None:
    expected = (
        "a list of [name, number above 0] that names each set of DATASETS.TRAIN, or of "
        "TRAIN_TARGET, or of both once"
    )
    for pair in sets["SHARES"]:
        whole = isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)
        if not whole or not _are_numbers(pair[1:], 1) or not pair[1]:
            sets.refuse("SHARES", expected)
    names = sorted(name for name, _ in sets["SHARES"])
    source, target = sorted(sets["TRAIN"]), sorted(sets["TRAIN_TARGET"])
    if names not in ([], source, target, sorted(source + target)):
        sets.refuse("SHARES", expected)


def _check_model(cfg: CN) -> None:
    model, head = _Group(cfg, "MODEL."), _Group(cfg, "MODEL.SEM_SEG_HEAD.")
    # Not detectron2's own, which cannot be adapted.
    model.one_of("META_ARCHITECTURE", _with(META_ARCH_REGISTRY, "forward_views", "score"))
    model.one_of("BACKBONE.NAME", (name for name, _ in BACKBONE_REGISTRY))
    head.one_of("NAME", _with(SEM_SEG_HEADS_REGISTRY, "fuse", "classify"))
    if model["BACKBONE.NAME"] == "MixTransformer":
        model.one_of("MIT.VARIANT", VARIANTS)
    for key in ("PIXEL_MEAN", "PIXEL_STD"):
        if model[key] and not _are_numbers(model[key], 3):
            model.refuse(key, "three numbers, of red, green and blue")
    if not all(model["PIXEL_STD"]):
        model.refuse("PIXEL_STD", "three numbers above 0")
    model.numbers("BACKBONE.FREEZE_AT", least=0, most=5)
    model.one_of("RESNETS.DEPTH", (18, 34, 50, 101, 152))
    model.numbers("BACKBONE.DROP_PATH", "SEM_SEG_HEAD.DROPOUT", least=0, below=1)
    head.numbers("NUM_CLASSES", least=1, most=IGNORE_LABEL)
    head.one_of("IGNORE_VALUE", (IGNORE_LABEL,))
    head.numbers("CONVS_DIM", least=1, most=10**4)
    if head["NAME"] == "DAFormerHead":
        head.one_of("NORM", ("BN", "SyncBN", "FrozenBN", "GN", "LN", ""))
        if not head["DILATIONS"] or not _are_whole(head["DILATIONS"], 1, 1000):
            head.refuse("DILATIONS", "whole numbers from 1 to 1000")
    model.size("HRDA.DETAIL_SIZE")
    model.shares("HRDA.DETAIL_WEIGHT")
    if model["META_ARCHITECTURE"] == "HRDASegmentor":
        model.multiple("HRDA.DETAIL_SIZE", 16)
        _Group(cfg, "INPUT.").multiple("CROP.SIZE", 8)
        _Group(cfg, "TEST.").multiple("SLIDE.CROP", 8)


def _check_self_training(cfg: CN) -> None:
    st = _Group(cfg, "SELF_TRAINING.")
    st.numbers("TEACHER_MOMENTUM", "IGNORE_TOP", "IGNORE_BOTTOM", least=0, below=1)
    st.one_of("TEACHER_STATISTICS", STATISTICS)
    st.one_of("CONFIDENCE", SCOPES)
    st.one_of("MASKED.IMAGES", IMAGES)
    st.shares("CONFIDENCE_THRESHOLD", "JITTER_PROBABILITY", "BLUR_PROBABILITY", "MASKED.RATIO")
    st.shares("COLLAPSE.MIN_ENTROPY", "COLLAPSE.MIN_CONFIDENT")
    st.numbers("FEATURE_DISTANCE.MIN_RATIO", above=0, most=1)
    st.numbers("JITTER_STRENGTH", least=0, most=0.5)
    st.numbers("MASKED.WEIGHT", "FEATURE_DISTANCE.WEIGHT", least=0)
    st.numbers("MASKED.BLOCK_SIZE", least=1, most=_LARGEST)
    st.numbers("COLLAPSE.AFTER", least=0, most=_MANY)
    crop = tuple(cfg.INPUT.CROP.SIZE)
    if st["MASKED.WEIGHT"] and min(crop) < st["MASKED.BLOCK_SIZE"]:
        expected = f"at most the side of the crop, INPUT.CROP.SIZE {crop}"
        st.refuse("MASKED.BLOCK_SIZE", expected)
    _check_margins(st)
    if st["ENABLED"] and st["FEATURE_DISTANCE.WEIGHT"]:
        _check_feature_distance(cfg, st)


def _check_margins(st: _Group) -> None:
    top, bottom, margins = st["IGNORE_TOP"], st["IGNORE_BOTTOM"], st["IGNORE_MARGINS"]
    if top + bottom >= 1:
        raise ValueError(
            f"SELF_TRAINING.IGNORE_TOP {top} and IGNORE_BOTTOM {bottom} leave nothing of the crop; "
            "expected a sum below 1"
        )
    if not _are_numbers(margins, 4) or margins[0] + margins[1] >= 1 or margins[2] + margins[3] >= 1:
        expected = "four shares (top, bottom, left, right) that leave some of the image"
        st.refuse("IGNORE_MARGINS", expected)
    if any(margins) and (top or bottom):
        raise ValueError(
            "SELF_TRAINING.IGNORE_MARGINS (of the image) and IGNORE_TOP, IGNORE_BOTTOM (of the "
            "crop) exclude each other; set one of them to 0"
        )


def _check_feature_distance(cfg: CN, st: _Group) -> None:
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "SELF_TRAINING.FEATURE_DISTANCE.WEIGHT > 0 compares with the ImageNet encoder in "
            "MODEL.WEIGHTS, which is empty; name a weight file, or set the weight to 0 to train "
            "from random initialisation"
        )
    classes = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    if not _are_whole(st["FEATURE_DISTANCE.CLASSES"], 0, classes - 1):
        expected = f"class indices below MODEL.SEM_SEG_HEAD.NUM_CLASSES {classes}"
        st.refuse("FEATURE_DISTANCE.CLASSES", expected)


def _check_prototypes(cfg: CN) -> None:
    proto = _Group(cfg, "PROTOTYPES.")
    proto.one_of("TYPE", ("none", *TYPES))
    proto.one_of("HEAD", ("separate", "shared"))
    proto.one_of("NORMALIZE", NORMALIZATIONS)
    proto.one_of("DISTANCE", DISTANCES)
    proto.one_of("SIMILARITY_SCALE", SIMILARITY_SCALES)
    proto.one_of("CLUSTER_POOL", POOLS)
    proto.one_of("INIT.METHOD", STARTS)
    proto.numbers("NUM_PER_CLASS", least=1, most=1000)
    proto.numbers("DIM", "SINKHORN.SWEEPS", least=1, most=10**4)
    samples = ("BANK.SIZE", "BANK.SAMPLES_PER_IMAGE", "POOL_SIZE", "INIT.MIN_SAMPLES")
    proto.numbers(*samples, least=1, most=10**7)
    proto.numbers("INIT.ITER", "GRADIENT_SHARE_PERIOD", least=0, most=_MANY)
    proto.numbers("MIN_VARIANCE", "TEMPERATURE", above=0)
    proto.numbers("MOMENTUM", least=0, below=1)
    proto.numbers("CONTRAST_WEIGHT", "CONSISTENCY_WEIGHT", "SINKHORN.EPSILON", least=0)
    views, scales = set(map(str, proto["CONTRAST_VIEWS"])), tuple(proto["SCALES"])
    if not views or not views <= set(VIEWS):
        expected = "some of source, mixed, target (or set PROTOTYPES.CONTRAST_WEIGHT to 0)"
        proto.refuse("CONTRAST_VIEWS", expected)
    if {"mixed", "target"} <= views:
        proto.refuse("CONTRAST_VIEWS", "one of 'mixed' and 'target', which is a part of 'mixed'")
    if scales not in (("context",), ("context", "detail")):
        proto.refuse("SCALES", "('context',) or ('context', 'detail')")
    if "detail" in scales and cfg.MODEL.META_ARCHITECTURE != "HRDASegmentor":
        expected = "('context',): only MODEL.META_ARCHITECTURE HRDASegmentor sees a detail"
        proto.refuse("SCALES", expected)
    if proto["TYPE"] == "none":
        return
    if not cfg.SELF_TRAINING.ENABLED:
        raise ValueError(
            "PROTOTYPES.TYPE needs SELF_TRAINING.ENABLED: prototypes are learned from mixed images"
        )
    if proto["NUM_PER_CLASS"] > (banked := proto["BANK.SIZE"]):
        expected = f"at most the embeddings banked for a class, PROTOTYPES.BANK.SIZE {banked}"
        proto.refuse("NUM_PER_CLASS", expected)


def _check_solver(cfg: CN) -> None:
    solver = _Group(cfg, "SOLVER.")
    solver.numbers("IMS_PER_BATCH", least=1, most=10**4)
    solver.numbers("BASE_LR", "HEAD_LR_FACTOR", above=0)
    solver.numbers("LAYER_DECAY", above=0, most=1)
    solver.numbers("WEIGHT_DECAY", "WEIGHT_DECAY_NORM", "POLY_POWER", least=0)
    solver.numbers("MAX_ITER", "CHECKPOINT_PERIOD", "MAX_SKIPPED", least=1, most=_MANY)
    solver.numbers("WARMUP_ITERS", "CHECKPOINT_KEEP", least=0, most=_MANY)
    solver.shares("WARMUP_FACTOR")
    solver.one_of("AMP.PRECISION", ("bfloat16", "float16"))
    if solver["DETERMINISTIC"] and cfg.CUDNN_BENCHMARK:
        raise ValueError(
            "SOLVER.DETERMINISTIC and CUDNN_BENCHMARK exclude each other: which algorithm is the "
            "fastest differs from run to run"
        )


def _check_test(cfg: CN) -> None:
    test = _Group(cfg, "TEST.")
    if test["SELECT_ON"] and test["SELECT_ON"] not in cfg.DATASETS.TEST:
        test.refuse("SELECT_ON", f"a set of DATASETS.TEST {tuple(cfg.DATASETS.TEST)}")
    test.numbers("EVAL_PERIOD", least=1 if test["SELECT_ON"] else 0, most=_MANY)
    test.one_of("INFERENCE", ("whole", "slide"))
    test.size("SLIDE.CROP")
    test.size("SLIDE.STRIDE")
    stride, crop = test["SLIDE.STRIDE"], test["SLIDE.CROP"]
    if stride[0] > crop[0] or stride[1] > crop[1]:
        test.refuse("SLIDE.STRIDE", f"at most TEST.SLIDE.CROP {tuple(crop)}: else gaps")
    test.numbers("SLIDE.BATCH", least=1, most=1000)
    if not test["AUG.MIN_SIZES"] or not _are_whole(test["AUG.MIN_SIZES"], 1, _LARGEST):
        test.refuse("AUG.MIN_SIZES", f"whole numbers from 1 to {_LARGEST}")
    test.numbers("AUG.MAX_SIZE", least=1, most=_LARGEST)
    test.one_of("OUTPUT", ("classifier", "prototypes"))
    if test["OUTPUT"] == "prototypes" and cfg.PROTOTYPES.TYPE == "none":
        raise ValueError(f"TEST.OUTPUT prototypes needs PROTOTYPES.TYPE {' or '.join(TYPES)}")


def _with(registry: Iterable[tuple[str, object]], *methods: str) -> list[str]:
    """The names under which objects with these methods are registered."""
    return [name for name, made in registry if all(hasattr(made, method) for method in methods)]


def _are_whole(values: Sequence[Any], least: int, most: int) -> bool:
    return all(isinstance(value, int) and least <= value <= most for value in values)


def _are_numbers(values: Sequence[Any], count: int) -> bool:
    numbers = all(isinstance(v, (int, float)) and 0 <= v < math.inf for v in values)
    return numbers and len(values) == count


ClassSubsets = Sequence[tuple[str, Sequence[str]]]
"""(name, classes): the mean IoU of the classes is reported as ``mIoU-<name>``."""


def check_class_subsets(class_subsets: ClassSubsets, class_names: Sequence[str]) -> None:
    """Raises ValueError unless each subset is a name of its own and a list of known classes."""
    names = []
    for subset in class_subsets:
        pair = isinstance(subset, (list, tuple)) and len(subset) == 2
        if not pair or not isinstance(subset[0], str) or not isinstance(subset[1], (list, tuple)):
            raise ValueError(
                f"TEST.CLASS_SUBSETS holds {subset!r}; expected [name, [class, class, ...]], a "
                "number as name in quotes"
            )
        name, classes = subset
        unknown = [c for c in classes if c not in class_names]
        if unknown or not classes or len(set(classes)) != len(classes):
            raise ValueError(
                f"TEST.CLASS_SUBSETS: subset {name!r} holds {unknown or list(classes)}; expected "
                f"one or more of {', '.join(class_names)}, each once"
            )
        names.append(name)
    if len(set(names)) != len(names):
        raise ValueError(f"TEST.CLASS_SUBSETS names a subset twice: {', '.join(names)}")
