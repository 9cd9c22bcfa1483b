"""Endless streams of draws, in which draw p depends on (seed, stream, p) alone.

Nothing is carried from one draw to the next. A run that resumes at iteration i continues as if it
had never stopped, and the ranks of a job split the stream of a single process among them, whatever
the number of loader workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol

import numpy as np

from ..utils.seeding import fold_seed
from .rare_class import RareClassSampler

NO_CLASS = -1  # Draw.rare_class of a draw that was not made for the sake of a class

# Keeps the seed of epoch e, of draw p = e, of what stands in for draw p and of its set apart.
_ORDER, _AUGMENTATION, _INSTEAD, _SET = 0, 1, 2, 3


@dataclass(frozen=True)
class Draw:
    """What one position of a stream stands for.

    Attributes:
        index: which image of the data set.
        seed: of everything random that happens to the image afterwards.
        rare_class: the class that the image was drawn for, or ``NO_CLASS``.
    """

    index: int
    seed: int
    rare_class: int = NO_CLASS


class Draws(Protocol):
    """An endless stream: ``draws[p]`` for every p >= 0."""

    def __getitem__(self, position: int) -> Draw: ...

    def instead(self, position: int, attempt: int) -> Draw:
        """What stands in for draw ``position`` when it and ``attempt - 1`` others could not be
        used; a function of (seed, stream, position, attempt) alone."""
        ...


@dataclass
class UniformDraws:
    """Every image once in each epoch, in an order of its own for each epoch.

    Attributes:
        num_images: size of the data set, at least 1.
        seed: of the run, not negative.
        stream: keeps streams of one run apart (source and target), not negative.
    Raises: ValueError: ``num_images`` is not positive.
    """

    num_images: int
    seed: int
    stream: int = 0

    def __post_init__(self) -> None:
        if self.num_images < 1:
            raise ValueError(f"num_images must be at least 1, got {self.num_images}")
        self._epoch = -1  # of the order at hand: a cache, it never changes what is drawn
        self._order = np.empty(0, dtype=np.int64)

    def __getitem__(self, position: int) -> Draw:
        """Draw ``position``. Raises ValueError if it is negative."""
        epoch, place = divmod(position, self.num_images)
        seed = fold_seed(self.seed, self.stream, _AUGMENTATION, position)
        if epoch != self._epoch:
            rng = np.random.default_rng(fold_seed(self.seed, self.stream, _ORDER, epoch))
            self._epoch, self._order = epoch, rng.permutation(self.num_images)
        return Draw(int(self._order[place]), seed)

    def instead(self, position: int, attempt: int) -> Draw:
        """Draws evenly among all images; see :class:`Draws`."""
        seed = fold_seed(self.seed, self.stream, _INSTEAD, position, attempt)
        return Draw(int(np.random.default_rng(seed).integers(self.num_images)), seed)


@dataclass(frozen=True)
class RareClassDraws:
    """Independent draws of a rare-class sampler.

    Attributes:
        sampler: draws a class and an image.
        seed: of the run, not negative.
        stream: keeps streams of one run apart, not negative.
    """

    sampler: RareClassSampler
    seed: int
    stream: int = 0

    def __getitem__(self, position: int) -> Draw:
        """Draw ``position``. Raises ValueError if it is negative."""
        rng = np.random.default_rng(fold_seed(self.seed, self.stream, _ORDER, position))
        rare_class, index = self.sampler.draw(rng)
        seed = fold_seed(self.seed, self.stream, _AUGMENTATION, position)
        return Draw(index, seed, rare_class)

    def instead(self, position: int, attempt: int) -> Draw:
        """Draws a class and an image anew; see :class:`Draws`."""
        seed = fold_seed(self.seed, self.stream, _INSTEAD, position, attempt)
        rare_class, index = self.sampler.draw(np.random.default_rng(seed))
        return Draw(index, seed, rare_class)


class SharedDraws:
    """Draws from several sets, each in its share: a draw is made for a set first, then as the set
    draws by itself at this position.

    Args:
        parts: the draws of each set.
        sizes: its number of images; those of all sets are counted one set after the other.
        shares: positive; how often it is drawn, compared with the others.
        seed, stream: as of the parts.
    """

    def __init__(
        self,
        parts: Sequence[Draws],
        sizes: Sequence[int],
        shares: Sequence[float],
        *,
        seed: int,
        stream: int = 0,
    ) -> None:
        self.parts, self.seed, self.stream = list(parts), seed, stream
        self.starts = [0, *accumulate(sizes)]
        self.probabilities = np.asarray(shares, float) / sum(shares)

    def __getitem__(self, position: int) -> Draw:
        """Draw ``position``. Raises ValueError if it is negative."""
        number = self._set(position)
        return self._counted(number, self.parts[number][position])

    def instead(self, position: int, attempt: int) -> Draw:
        """Another draw from the same set; see :class:`Draws`."""
        number = self._set(position)
        return self._counted(number, self.parts[number].instead(position, attempt))

    def _set(self, position: int) -> int:
        rng = np.random.default_rng(fold_seed(self.seed, self.stream, _SET, position))
        return int(rng.choice(len(self.parts), p=self.probabilities))

    def _counted(self, number: int, draw: Draw) -> Draw:
        return replace(draw, index=self.starts[number] + draw.index)


def rank_positions(iteration: int, batch_size: int, rank: int = 0, world_size: int = 1) -> range:
    """The positions of a stream that one rank takes in one iteration.

    Iteration i takes positions [i * batch_size, (i + 1) * batch_size) and rank r the r-th equal
    part of them, so that the ranks in their order see what a single process sees.

    Args:
        iteration: not negative.
        batch_size: images in an iteration, over all ranks.
        rank: in [0, world_size).
        world_size: number of ranks.
    Raises: ValueError: ``batch_size`` is not a positive multiple of ``world_size``, or ``rank`` or
        ``iteration`` is out of its range.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"batch_size must be a positive multiple of the {world_size} ranks, got {batch_size}"
        )
    if not 0 <= rank < world_size or iteration < 0:
        raise ValueError(
            f"expected 0 <= rank < {world_size} and iteration >= 0, got {rank} and {iteration}"
        )
    per_rank = batch_size // world_size
    first = iteration * batch_size + rank * per_rank
    return range(first, first + per_rank)
