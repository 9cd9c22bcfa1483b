"""What travels between the rooms in a training step: :class:`View`, :class:`Outputs`, :class:`Step`
(pure, no detectron2)."""

from .step import Detail, Outputs, Pixels, Step
from .view import Box, View

__all__ = ["Box", "Detail", "Outputs", "Pixels", "Step", "View"]
