"""Multi-prototype contrastive learning for unsupervised domain-adaptive semantic segmentation, on
detectron2.

Importing the package registers its data sets, backbone, heads and meta-architecture.
"""

import warnings

__version__ = "0.1.0"

# fvcore and detectron2 call it while they are imported, where no user can change anything.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)

from . import data, modeling  # noqa: E402
from .config import add_mpcl_config, get_cfg_from, get_config  # noqa: E402
from .predict.predictor import Predictor  # noqa: E402

__all__ = ["Predictor", "add_mpcl_config", "data", "get_cfg_from", "get_config", "modeling"]
