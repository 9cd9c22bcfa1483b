"""What comes in: data sets, sampling, augmentation and the paired loader.

Importing it registers the data sets.
"""

from .sets import registration  # noqa: F401
