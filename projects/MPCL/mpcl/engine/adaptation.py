"""What Algorithm 1 does around the student's forward."""

from dataclasses import dataclass

import torch
from detectron2.engine import HookBase
from detectron2.modeling import build_backbone
from torch import Tensor, nn

from ..checkpoint.weights import load_encoder_
from ..modeling.autocast_weights import cast_weights, layer_weights
from ..prototypes.learner import PrototypeLearner
from ..self_training.class_mix import class_mix, sample_class_mask
from ..self_training.masking import Masking
from ..self_training.pseudo_label import PseudoLabels
from ..self_training.strong_augmentation import StrongAugmentation
from ..self_training.teacher import EMATeacher
from ..structures import Step, View
from .alarms import CONFIDENT, ENTROPY, class_entropy


@dataclass(kw_only=True, eq=False, repr=False)
class AdaptationHook(HookBase):
    """EMA teacher, class-mix, Sinkhorn clustering and prototype updates, each iteration, on the
    device.

    A hook with two more phases than detectron2's, on either side of the student's forward, because
    clustering stands between forward and loss; the trainer calls them by name. Owns the objects and
    their order; the mathematics is in ``self_training`` and ``prototypes``.

    Attributes:
        student: the trained model, outside DDP.
        teacher: its exponential moving average.
        masking: None = no masked view.
        reference_encoder: frozen ImageNet encoder of the feature distance; None = the distance is
            off.
        learner: None = self-training without prototypes.
    """

    student: nn.Module
    teacher: EMATeacher
    pseudo_labels: PseudoLabels
    augment: StrongAugmentation
    masking: Masking | None
    reference_encoder: nn.Module | None
    learner: PrototypeLearner | None
    num_classes: int

    @classmethod
    def from_config(cls, cfg, student: nn.Module, teacher: EMATeacher) -> "AdaptationHook":
        distance = cfg.SELF_TRAINING.FEATURE_DISTANCE
        return cls(
            student=student,
            teacher=teacher,
            pseudo_labels=PseudoLabels.from_config(cfg),
            augment=StrongAugmentation.from_config(cfg),
            masking=Masking.from_config(cfg),
            reference_encoder=build_reference_encoder(cfg) if distance.WEIGHT > 0 else None,
            learner=PrototypeLearner.from_config(cfg, student.prototype_head),
            num_classes=cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
        )

    def before_train(self) -> None:
        self.teacher.train()
        if self.learner is not None:
            self.learner.count_started()
        if self.trainer.start_iter == 0:
            # Only now: at construction the student did not have its pre-trained weights yet.
            self.teacher.copy_(self.student)

    @torch.no_grad()
    def before_forward(self, step: Step) -> None:
        """The teacher labels the target; class-mix; masked images."""
        with self.trainer.autocast():
            step.target, confident = self.label(step.target)
            if self.reference_encoder is not None:
                features = self.reference_encoder(self.student.encoder_input(step.source.images))
                step.reference_features = features[self.student.deepest_feature]
        step.mixed = self.mix(step.source, step.target)
        if self.masking is not None:
            step.masked = self.masking(step.source, step.target, self.augment)
        entropy = class_entropy(step.target.label, self.num_classes)
        self.trainer.metrics.add({CONFIDENT: confident, ENTROPY: entropy})

    def after_forward(self, step: Step) -> None:
        """Sinkhorn clustering; prototype update."""
        if self.learner is None:
            return
        had_none = self.learner.num_started == 0
        self.trainer.metrics.add(self.learner(step))
        if had_none and self.learner.num_started:
            # So far its gradients were zeros, which have aged Adam's moments: its first steps would
            # be several times the learning rate.
            for parameter in self.student.prototype_head.parameters():
                self.trainer.optimizer.state.pop(parameter, None)

    def after_step(self) -> None:
        self.teacher.update_(self.student, self.trainer.iter)
        momentum = self.teacher.momentum_at(self.trainer.iter)
        self.trainer.storage.put_scalar("teacher/momentum", momentum, smoothing_hint=False)

    def label(self, target: View) -> tuple[View, Tensor]:
        """The target with the teacher's labels, and their confident share; see
        :class:`PseudoLabels`."""
        with cast_weights(self.teacher.model):
            scores = self.teacher.model.score(target.images)
        return self.pseudo_labels(scores, target)

    def mix(self, source: View, target: View) -> View:
        """Half of the source's classes pasted onto the target, then strongly augmented."""
        pasted = sample_class_mask(source.label, self.num_classes)
        mixed = class_mix(pasted, source, target)
        mixed.images = self.augment(mixed.images)
        return mixed


def build_reference_encoder(cfg) -> nn.Module:
    """The encoder with the weights of MODEL.WEIGHTS, frozen, in evaluation mode (DAFormer's
    ImageNet model). Layers that autocast casts hold what it casts them to.

    Built from the file, not from the student: a resumed student has long left its ImageNet weights.
    """
    encoder = build_backbone(cfg)
    load_encoder_(encoder, cfg.MODEL.WEIGHTS)
    if cfg.SOLVER.AMP.ENABLED:
        for weight in layer_weights(encoder):
            weight.data = weight.data.to(getattr(torch, cfg.SOLVER.AMP.PRECISION))
    return encoder.to(cfg.MODEL.DEVICE).requires_grad_(False).eval()
