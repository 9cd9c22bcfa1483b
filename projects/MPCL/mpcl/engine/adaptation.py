"""What the algorithm does around the student's forward, and when."""

from dataclasses import dataclass, replace

import torch
from detectron2.engine import HookBase
from torch import Tensor, nn

from ..prototypes.learner import PrototypeLearner
from ..self_training.class_mix import class_mix, sample_class_mask
from ..self_training.masking import hide_blocks
from ..self_training.pseudo_label import PseudoLabel, pseudo_label
from ..self_training.strong_augmentation import StrongAugmentation
from ..self_training.teacher import EMATeacher
from ..structures.step import AdaptationStep
from ..structures.view import View
from .alarms import CONFIDENT, ENTROPY, class_entropy


class AdaptationHookBase(HookBase):
    """A hook with two more phases than detectron2's, on either side of the student's forward.

    :class:`AdaptationTrainer` calls them for every such hook, in the order of registration.
    """

    def before_forward(self, step: AdaptationStep) -> None:
        """May add views for the student to ``step``."""

    def after_forward(self, step: AdaptationStep) -> None:
        """May add targets for the losses to ``step``; ``step.outputs`` is there."""


@dataclass(frozen=True)
class Masking:
    """The masked view of MIC.

    Attributes:
        block_size: side of a hidden block, pixels.
        ratio: share of hidden blocks.
        images: ``target`` = all target images; ``pair`` = the first image of each domain.
        augment: whether the images are strongly augmented before they are masked.
    """

    block_size: int
    ratio: float
    images: str
    augment: bool


class AdaptationHook(AdaptationHookBase):
    """EMA teacher, class-mix, Sinkhorn clustering and prototype updates, each iteration, on the
    device.

    Owns the objects and their order; the mathematics is in ``self_training`` and ``prototypes``.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: EMATeacher,
        *,
        augment: StrongAugmentation,
        confidence_threshold: float,
        confidence_scope: str,
        ignore_top: float,
        ignore_bottom: float,
        num_classes: int,
        ignore_value: int,
        masking: Masking | None = None,
        reference_encoder: nn.Module | None = None,
        prototype_learner: PrototypeLearner | None = None,
    ) -> None:
        """
        Args:
            student: the trained model, outside DDP.
            teacher: its exponential moving average.
            masking: None = no masked view.
            reference_encoder: frozen ImageNet encoder of the feature distance; None = the distance
                is off.
            prototype_learner: None = self-training without prototypes.
        """
        self.student = student
        self.teacher = teacher
        self.augment = augment
        self.confidence_threshold = confidence_threshold
        self.confidence_scope = confidence_scope
        self.ignore_top = ignore_top
        self.ignore_bottom = ignore_bottom
        self.num_classes = num_classes
        self.ignore_value = ignore_value
        self.masking = masking
        self.reference_encoder = reference_encoder
        self.prototype_learner = prototype_learner

    def before_train(self) -> None:
        self.teacher.train()
        if self.trainer.start_iter == 0:
            # Only now: at construction the student did not have its pre-trained weights yet.
            self.teacher.copy_(self.student)

    @torch.no_grad()
    def before_forward(self, step: AdaptationStep) -> None:
        with self.trainer.autocast():
            step.pseudo_label = self.label_target(step.target, step.target_valid)
            if self.reference_encoder is not None:
                step.reference_features = self._reference_features(step.source.images)
        step.mixed = self.mix(step.source, step.target, step.pseudo_label)
        if self.masking is not None:
            step.masked = self.mask(step.source, step.target, step.pseudo_label)
        entropy = class_entropy(step.pseudo_label.label, self.num_classes)
        self.trainer.metrics.add(
            {CONFIDENT: step.pseudo_label.confident_fraction, ENTROPY: entropy}
        )

    def after_forward(self, step: AdaptationStep) -> None:
        if self.prototype_learner is not None:
            self.trainer.metrics.add(self.prototype_learner(step))

    def after_step(self) -> None:
        self.teacher.update_(self.student, self.trainer.iter)
        momentum = self.teacher.momentum_at(self.trainer.iter)
        self.trainer.storage.put_scalar("teacher/momentum", momentum, smoothing_hint=False)

    def label_target(self, target: Tensor, valid: Tensor | None = None) -> PseudoLabel:
        """The teacher's labels of un-augmented target images, with their confidence."""
        return pseudo_label(
            self.teacher.model.score(target),
            target.shape[-2:],
            threshold=self.confidence_threshold,
            scope=self.confidence_scope,
            ignore_top=self.ignore_top,
            ignore_bottom=self.ignore_bottom,
            valid=valid,
        )

    def mix(self, source: View, target: Tensor, pseudo: PseudoLabel) -> View:
        """Half of the source's classes pasted onto the target (ClassMix), then strongly
        augmented."""
        mask = sample_class_mask(source.label, self.num_classes, self.ignore_value)
        return View(
            images=self.augment(class_mix(mask, source.images, target)),
            label=class_mix(mask, source.label, pseudo.label),
            weight=class_mix(mask, torch.ones_like(pseudo.weight), pseudo.weight),
            trusted=class_mix(mask, source.trusted, pseudo.confident),
            from_source=mask,
        )

    def mask(self, source: View, target: Tensor, pseudo: PseudoLabel) -> View:
        """Images with hidden blocks; labels and weights as if nothing were hidden (MIC)."""
        view = View(target, pseudo.label, pseudo.weight, pseudo.confident)
        if self.masking.images == "pair":
            view = _first_of_both(source, view)
        images = self.augment(view.images) if self.masking.augment else view.images
        hidden = hide_blocks(images, block_size=self.masking.block_size, ratio=self.masking.ratio)
        return replace(view, images=hidden)

    def _reference_features(self, images: Tensor) -> Tensor:
        encoder_input = self.student.encoder_input(images)
        return self.reference_encoder(encoder_input)[self.student.deepest_feature]


def _first_of_both(source: View, target: View) -> View:
    weights = torch.ones_like(target.weight), target.weight
    return View(
        images=torch.cat([source.images[:1], target.images[:1]]),
        label=torch.cat([source.label[:1], target.label[:1]]),
        weight=torch.cat([weight[:1] for weight in weights]),
        trusted=torch.cat([source.trusted[:1], target.trusted[:1]]),
    )
