"""From the config to the objects of the training step."""

import logging
from collections.abc import Callable
from pathlib import Path

import torch
from detectron2.modeling import build_backbone
from torch import nn

from ..checkpoint.weights import load_encoder_
from ..losses.criterion import Criterion, PrototypeCriterion
from ..prototypes.learner import PrototypeLearner
from ..self_training.strong_augmentation import StrongAugmentation
from ..self_training.teacher import EMATeacher
from .adaptation import AdaptationHook, Masking
from .alarms import CollapseAlarm
from .guards import StepGuard

logger = logging.getLogger(__name__)


def compile_encoders(*networks: nn.Module) -> None:
    """Fuses what torch.compile can in the encoders, at their first forward of each input size.

    In place: names in checkpoints stay as they are. The heads are mostly convolutions, which gain
    nothing.
    """
    for network in networks:
        network.backbone.compile()


def build_adaptation_hook(cfg, student: nn.Module, teacher: EMATeacher) -> AdaptationHook:
    st, head = cfg.SELF_TRAINING, cfg.MODEL.SEM_SEG_HEAD
    augment = StrongAugmentation(
        cfg.MODEL.PIXEL_MEAN,
        cfg.MODEL.PIXEL_STD,
        jitter_probability=st.JITTER_PROBABILITY,
        jitter_strength=st.JITTER_STRENGTH,
        blur_probability=st.BLUR_PROBABILITY,
    )
    return AdaptationHook(
        student,
        teacher,
        augment=augment,
        confidence_threshold=st.CONFIDENCE_THRESHOLD,
        confidence_scope=st.CONFIDENCE,
        ignore_top=st.IGNORE_TOP,
        ignore_bottom=st.IGNORE_BOTTOM,
        num_classes=head.NUM_CLASSES,
        ignore_value=head.IGNORE_VALUE,
        masking=build_masking(cfg),
        reference_encoder=build_reference_encoder(cfg) if st.FEATURE_DISTANCE.WEIGHT > 0 else None,
        prototype_learner=build_prototype_learner(cfg, student)
        if cfg.PROTOTYPES.TYPE != "none"
        else None,
    )


def build_masking(cfg) -> Masking | None:
    masked = cfg.SELF_TRAINING.MASKED
    if masked.WEIGHT == 0:
        return None
    return Masking(masked.BLOCK_SIZE, masked.RATIO, masked.IMAGES, masked.AUGMENT)


def build_reference_encoder(cfg) -> nn.Module:
    """The encoder with the weights of MODEL.WEIGHTS, frozen, in evaluation mode (DAFormer's
    ImageNet model).

    Built from the file, not from the student: a resumed student has long left its ImageNet weights.
    """
    encoder = build_backbone(cfg)
    load_encoder_(encoder, cfg.MODEL.WEIGHTS)
    return encoder.to(cfg.MODEL.DEVICE).requires_grad_(False).eval()


def build_prototype_learner(cfg, student: nn.Module) -> PrototypeLearner:
    proto, head = cfg.PROTOTYPES, student.prototype_head
    num_bytes = sum(bank.num_bytes for bank in head.banks.values())
    logger.info(
        f"Feature banks ({', '.join(head.banks)}): {num_bytes / 2**20:.0f} MiB on "
        f"{student.device} ({cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES} classes x {proto.BANK.SIZE} "
        f"embeddings of {proto.DIM} channels each)"
    )
    return PrototypeLearner(
        head.prototypes,
        dict(head.banks.items()),
        pool=proto.CLUSTER_POOL,
        pool_size=proto.POOL_SIZE,
        epsilon=proto.SINKHORN.EPSILON,
        sweeps=proto.SINKHORN.SWEEPS,
        start_iter=proto.INIT.ITER,
        start_method=proto.INIT.METHOD,
        start_samples=proto.INIT.MIN_SAMPLES,
        dead_after=proto.DEAD_AFTER,
        revive=proto.REVIVE,
        check_period=cfg.LOG_PERIOD,
        ignore_value=cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE,
        seed=cfg.SEED,
    )


def build_criterion(cfg, student: nn.Module) -> Criterion:
    distance, head = cfg.SELF_TRAINING.FEATURE_DISTANCE, cfg.MODEL.SEM_SEG_HEAD
    return Criterion(
        num_classes=head.NUM_CLASSES,
        ignore_value=head.IGNORE_VALUE,
        feature_distance_weight=distance.WEIGHT,
        feature_distance_classes=distance.CLASSES,
        feature_distance_min_ratio=distance.MIN_RATIO,
        masked_weight=cfg.SELF_TRAINING.MASKED.WEIGHT,
        detail_weight=cfg.MODEL.HRDA.DETAIL_WEIGHT,
        prototype_criterion=build_prototype_criterion(cfg, student)
        if cfg.PROTOTYPES.TYPE != "none"
        else None,
    )


def build_prototype_criterion(cfg, student: nn.Module) -> PrototypeCriterion:
    proto = cfg.PROTOTYPES
    return PrototypeCriterion(
        student.prototype_head.prototypes,
        temperature=proto.TEMPERATURE,
        contrast_weight=proto.CONTRAST_WEIGHT,
        consistency_weight=proto.CONSISTENCY_WEIGHT,
        contrast_views=proto.CONTRAST_VIEWS,
        in_class_negatives=proto.IN_CLASS_NEGATIVES,
        consistency_weighted=proto.CONSISTENCY_WEIGHTED,
        detail_weight=cfg.MODEL.HRDA.DETAIL_WEIGHT,
    )


def build_collapse_alarm(cfg) -> CollapseAlarm:
    collapse = cfg.SELF_TRAINING.COLLAPSE
    return CollapseAlarm(
        min_entropy=collapse.MIN_ENTROPY,
        min_confident=collapse.MIN_CONFIDENT,
        after=collapse.AFTER,
    )


def build_step_guard(
    cfg,
    student: nn.Module,
    teacher: EMATeacher | None,
    optimizer: torch.optim.Optimizer,
    last_checkpoint: Callable[[], str],
) -> StepGuard:
    banks = [] if student.prototype_head is None else list(student.prototype_head.banks.values())
    # Source and mixed images, of all ranks.
    images = 2 * cfg.SOLVER.IMS_PER_BATCH
    return StepGuard(
        [student] if teacher is None else [student, teacher],
        optimizer,
        banks,
        most_banked=images * cfg.PROTOTYPES.BANK.SAMPLES_PER_IMAGE,
        max_skipped=cfg.SOLVER.MAX_SKIPPED,
        report=Path(cfg.OUTPUT_DIR) / "diverged.json",
        last_checkpoint=last_checkpoint,
    )


def precision_in_words(cfg) -> str:
    """What the log says about the arithmetic of the forward passes."""
    if cfg.SOLVER.AMP.ENABLED:
        return f"{cfg.SOLVER.AMP.PRECISION} autocast forward, float32 losses and prototypes"
    tf32 = cfg.MODEL.DEVICE != "cpu" and torch.backends.cuda.matmul.allow_tf32
    return "float32" + (" (TF32 matrix products)" if tf32 else "")
