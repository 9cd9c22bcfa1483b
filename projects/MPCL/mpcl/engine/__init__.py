"""The order of things: the training step, its hook, its losses and its optimizer."""

from .adaptation import AdaptationHook
from .trainer import AdaptationTrainer

__all__ = ["AdaptationHook", "AdaptationTrainer"]
