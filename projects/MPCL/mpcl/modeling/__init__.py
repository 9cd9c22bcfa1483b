"""The student: backbone, heads and meta-architecture, registered with detectron2."""

from .daformer_head import DAFormerHead
from .hrda import HRDASegmentor
from .mit import MixTransformer
from .prototype_head import PrototypeHead
from .segmentor import MPCLSegmentor
from .timm_backbone import TimmBackbone

__all__ = [
    "DAFormerHead",
    "HRDASegmentor",
    "MPCLSegmentor",
    "MixTransformer",
    "PrototypeHead",
    "TimmBackbone",
]
