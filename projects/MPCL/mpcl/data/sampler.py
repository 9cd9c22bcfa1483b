"""Endless streams of draws, in which draw p depends on (seed, stream, p) alone.

A run that resumes at iteration i continues as if it had never stopped, and the ranks of a job split
the stream of a single process among them, whatever the number of loader workers.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..utils.seeding import fold_seed
from .rare_class import RareClassSampler

NO_CLASS = -1  # Draw.rare_class of a draw that was not made for the sake of a class

# The first part of a seed keeps its four uses apart: the order of an epoch, the augmentation of a
# draw, what stands in for it, and the choice of the set.
_ORDER, _AUGMENTATION, _INSTEAD, _SET = 0, 1, 2, 3


@dataclass(frozen=True)
class Draw:
    """What one position of a stream stands for."""

    index: int  # which image of the data set
    seed: int  # of everything random that happens to the image afterwards
    rare_class: int = NO_CLASS  # the class that the image was drawn for


class Draws(Protocol):
    """An endless stream of draws, by their position."""

    def draw(self, position: int, attempt: int = 0) -> Draw:
        """What comes at a position; a function of (seed, stream, position, attempt) alone.

        Args:
            position: not negative.
            attempt: above 0, what stands in for the draw when it and ``attempt - 1`` others could
                not be used.
        Raises: ValueError: a number is negative.
        """
        ...


@dataclass
class UniformDraws:
    """Every image once in each epoch, in an order of its own; stand-ins are drawn evenly."""

    num_images: int  # at least 1
    seed: int  # of the run, not negative
    stream: int = 0  # keeps streams of one run apart (source and target), not negative

    def __post_init__(self) -> None:
        self._epoch = -1  # of the order at hand: a cache, it never changes what is drawn
        self._order = np.empty(0, dtype=np.int64)

    def draw(self, position: int, attempt: int = 0) -> Draw:
        if attempt:
            seed = fold_seed(self.seed, self.stream, _INSTEAD, position, attempt)
            return Draw(int(np.random.default_rng(seed).integers(self.num_images)), seed)
        epoch, place = divmod(position, self.num_images)
        seed = fold_seed(self.seed, self.stream, _AUGMENTATION, position)
        if epoch != self._epoch:
            rng = np.random.default_rng(fold_seed(self.seed, self.stream, _ORDER, epoch))
            self._epoch, self._order = epoch, rng.permutation(self.num_images)
        return Draw(int(self._order[place]), seed)


@dataclass(frozen=True)
class RareClassDraws:
    """Independent draws of a class, and of an image for it."""

    sampler: RareClassSampler
    seed: int
    stream: int = 0

    def draw(self, position: int, attempt: int = 0) -> Draw:
        if attempt:
            order = seed = fold_seed(self.seed, self.stream, _INSTEAD, position, attempt)
        else:
            order = fold_seed(self.seed, self.stream, _ORDER, position)
            seed = fold_seed(self.seed, self.stream, _AUGMENTATION, position)
        rare_class, index = self.sampler.draw(np.random.default_rng(order))
        return Draw(index, seed, rare_class)


@dataclass(frozen=True, kw_only=True)
class SharedDraws:
    """Draws from several sets, each in its share: a set is drawn first, then as by itself at this
    position; stand-ins come from the same set."""

    parts: Sequence[Draws]  # of each set
    sizes: Sequence[int]  # images of each; those of all sets are counted one set after the other
    shares: Sequence[float]  # how often each is drawn; they sum to 1
    seed: int
    stream: int = 0

    def draw(self, position: int, attempt: int = 0) -> Draw:
        rng = np.random.default_rng(fold_seed(self.seed, self.stream, _SET, position))
        number = int(rng.choice(len(self.parts), p=self.shares))
        draw = self.parts[number].draw(position, attempt)
        return replace(draw, index=sum(self.sizes[:number]) + draw.index)


def rank_positions(iteration: int, batch_size: int, rank: int = 0, world_size: int = 1) -> range:
    """The positions of a stream that one rank takes in one iteration.

    Iteration i takes positions [i * batch_size, (i + 1) * batch_size) and rank r the r-th equal
    part of them, so that the ranks in their order see what a single process sees.

    Raises: ValueError: ``batch_size`` is not a positive multiple of ``world_size``.
    """
    if batch_size < 1 or batch_size % world_size:
        raise ValueError(
            f"batch_size must be a positive multiple of the {world_size} ranks, got {batch_size}"
        )
    per_rank = batch_size // world_size
    first = iteration * batch_size + rank * per_rank
    return range(first, first + per_rank)
