"""What travels between the rooms in a training step: :class:`View`, :class:`Outputs`, :class:`Step`
(pure, no detectron2)."""

from .outputs import Detail, Outputs
from .step import Pixels, Step
from .view import Box, View

__all__ = ["Box", "Detail", "Outputs", "Pixels", "Step", "View"]
