"""The student: backbone, heads and meta-architecture, registered with detectron2."""

from .daformer_head import DAFormerHead
from .mit import MixTransformer
from .prototype_head import PrototypeHead
from .segmentor import MPCLSegmentor

__all__ = ["DAFormerHead", "MPCLSegmentor", "MixTransformer", "PrototypeHead"]
