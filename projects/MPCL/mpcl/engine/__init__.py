"""The order of things: the training step, its hooks, its optimizer, evaluation, launch."""

from .adaptation import AdaptationHook
from .trainer import AdaptationTrainer

__all__ = ["AdaptationHook", "AdaptationTrainer"]
