"""Multi-prototype contrastive learning for unsupervised domain-adaptive semantic segmentation, on
detectron2.

Importing the package registers its data sets, backbone, heads and meta-architecture.
"""

from . import data, modeling
from .config import add_mpcl_config, get_cfg_from
from .predict.predictor import Predictor

__all__ = ["Predictor", "add_mpcl_config", "data", "get_cfg_from", "modeling"]
