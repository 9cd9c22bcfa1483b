"""What is legitimate in a config but seldom meant, in sentences."""

from detectron2.config import CfgNode

from ..data.resizing import scales_in_words
from ..data.sets.classes import classes_of
from ..data.sets.driving_classes import CITYSCAPES_CLASSES
from .keys import default_config


def unread_notes(cfg: CfgNode) -> list[str]:
    """Says so where an encoder is named that is not built."""
    name, builder = cfg.MODEL.TIMM.NAME, cfg.MODEL.BACKBONE.NAME
    if not name or builder == "build_timm_backbone":
        return []
    return [
        f"MODEL.TIMM.NAME {name} is not read: MODEL.BACKBONE.NAME is {builder}. It takes "
        "MODEL.BACKBONE.NAME build_timm_backbone"
    ]


def distance_notes(cfg: CfgNode) -> list[str]:
    """Says which classes the feature distance compares, where they are not Cityscapes' things."""
    distance, classes = cfg.SELF_TRAINING.FEATURE_DISTANCE, classes_of(cfg).stuff_classes
    if not cfg.SELF_TRAINING.ENABLED or distance.WEIGHT == 0:
        return []
    chosen = tuple(default_config().SELF_TRAINING.FEATURE_DISTANCE.CLASSES)
    names = [classes[index] for index in distance.CLASSES]
    if tuple(distance.CLASSES) != chosen or names == [CITYSCAPES_CLASSES[i] for i in chosen]:
        return []
    return [
        f"the feature distance compares features of {', '.join(names)}: "
        "SELF_TRAINING.FEATURE_DISTANCE.CLASSES are the indices of Cityscapes' things"
    ]


def length_notes(cfg: CfgNode) -> list[str]:
    """Says so where a short run ends before the prototypes begin, or the rate is at its highest."""
    start, warmup, end = cfg.PROTOTYPES.INIT.ITER, cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.MAX_ITER
    notes = []
    if cfg.PROTOTYPES.TYPE != "none" and start >= end:
        notes.append(
            f"no prototype starts in this run: PROTOTYPES.INIT.ITER is {start}, and "
            f"SOLVER.MAX_ITER {end}. It trains as without prototypes"
        )
    if warmup >= end / 2:
        notes.append(
            f"the learning rate stays low in this run: it rises for SOLVER.WARMUP_ITERS {warmup} "
            f"iterations, and SOLVER.MAX_ITER is {end}"
        )
    return notes


def scale_notes(scales: dict[str, list[float]]) -> list[str]:
    """Sentences on images that are resized strongly, or by other factors than another set's."""
    words = ", ".join(scales_in_words(name, factors) for name, factors in scales.items())
    medians = [factors[len(factors) // 2] for factors in scales.values()]
    notes = []
    if any(factors[0] < 0.5 or factors[-1] > 2 for factors in scales.values()):
        notes.append(f"images are resized strongly, to less than half or more than twice: {words}")
    if medians and max(medians) > 1.5 * min(medians):
        notes.append(
            f"the sets are resized by different factors: {words}. The same thing should be about "
            "as large in all of them; set INPUT.SOURCE_SIZE and INPUT.TARGET_SIZE accordingly"
        )
    return notes
