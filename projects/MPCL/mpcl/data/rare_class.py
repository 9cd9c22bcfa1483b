"""Rare-class sampling: images are drawn through a class, and rare classes come more often.

Legend: N label files, C classes. Pure NumPy; the pixels are counted elsewhere, once a data set.
"""

import logging

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

# Where no file passes the threshold, those with this part of the class's largest share stand in.
_FALLBACK_PART = 0.5


def class_probabilities(counts: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    r"""Probability of drawing each class: the rarer, the likelier.

    .. math:: P(c) = \frac{\exp((1 - f_c) / T)}{\sum_k \exp((1 - f_k) / T)},
              \quad f_c = N_c / \sum_k N_k

    Classes that never occur take no part and get 0.

    Source: DAFormer (arXiv:2111.14887), Eq. (9) and (10); T = 0.01 there.

    Args:
        counts: (C,) pixels of each class over the data set, at least one in all.
        temperature: T > 0; small values favour the rarest classes, large ones treat all alike.
    Returns: (C,) float64, sum 1.
    Raises: ValueError: no class has a pixel.
    """
    if not counts.any():
        raise ValueError("no label has a pixel of any class")
    logits = np.where(counts > 0, (1 - counts / counts.sum()) / temperature, -np.inf)
    weights = np.exp(logits - logits.max())
    probabilities: NDArray[np.float64] = weights / weights.sum()
    return probabilities


class RareClassSampler:
    """Draws a class by :func:`class_probabilities`, then evenly a file that shows enough of it.

    A file qualifies for a class that covers strictly more than ``min_image_fraction`` of its
    pixels. A class that occurs, but never that large, is drawn from the files where it is largest
    (at least half of its largest share); DAFormer's code stops with an error there.

    Source: DAFormer (arXiv:2111.14887), Sec. 3.3. Differs from its code in that fallback, and in a
    threshold that is a fraction of the image, so that it fits every resolution (its 3000 pixels are
    0.0015 of a GTA5 frame).

    Args:
        counts: (N, C) pixels of each class in each label file, at native size.
        sizes: (N, 2) height and width of each label file.
        temperature, min_image_fraction: positive, and in [0, 1).
    Attributes:
        probabilities: (C,) float64 probability of each class.
        candidates: for each class the indices of its files; empty for a class that never occurs.
    """

    def __init__(
        self,
        counts: NDArray[np.int64],
        sizes: NDArray[np.int64],
        temperature: float,
        min_image_fraction: float,
    ) -> None:
        self.probabilities = class_probabilities(counts.sum(axis=0), temperature)
        self._num_files = len(counts)
        share = counts / sizes.prod(axis=1, keepdims=True)
        self.candidates = [np.flatnonzero(column > min_image_fraction) for column in share.T]
        largest = share.max(axis=0)
        small = [c for c in np.flatnonzero(largest).tolist() if not self.candidates[c].size]
        for c in small:
            self.candidates[c] = np.flatnonzero(share[:, c] >= _FALLBACK_PART * largest[c])
        if small:
            logger.warning(
                "Classes %s cover at most %g of any image: drawn where they are largest.",
                small,
                min_image_fraction,
            )

    @property
    def image_probabilities(self) -> NDArray[np.float64]:
        """(N,) float64 probability of drawing each file, sum 1."""
        found = np.zeros(self._num_files)
        for probability, files in zip(self.probabilities, self.candidates):
            found[files] += probability / max(1, len(files))
        return found

    def draw(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draws a class, then a file that shows it; returns (class, index of the file)."""
        drawn = int(rng.choice(len(self.probabilities), p=self.probabilities))
        return drawn, int(rng.choice(self.candidates[drawn]))
