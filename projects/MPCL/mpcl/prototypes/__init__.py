"""Clustering and contrast: the method's own mathematics (pure tensor maths, no detectron2)."""

from .base import Prototypes
from .centroid import CentroidPrototypes
from .gaussian import GaussianPrototypes

TYPES: dict[str, type[Prototypes]] = {"centroid": CentroidPrototypes, "gauss": GaussianPrototypes}
"""By PROTOTYPES.TYPE."""
