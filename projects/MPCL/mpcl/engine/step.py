"""Everything that one iteration knows: the only channel between trainer, hook and criterion.

C classes, K prototypes a class, N pixels of a view on the embedding grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from torch import Tensor

from ..self_training.pseudo_label import PseudoLabel
from ..views import View, ViewOutputs


@dataclass
class PixelTargets:
    """What the prototype losses ask of the pixels of one view, flattened in (B, h, w) order.

    Attributes:
        label: (N,) int64 in [0, C]; C = takes no part.
        weight: (N,) float32.
        cluster: (N,) int64 in [0, C*K]: the assigned prototype; C*K = none.
        from_source: (N,) bool.
    """

    label: Tensor
    weight: Tensor
    cluster: Tensor
    from_source: Tensor


@dataclass
class AdaptationStep:
    """Filled from top to bottom in the course of an iteration, and dropped after it.

    Attributes:
        iteration: of the run, from 0.
        source: images and ground truth.
        target: (B, 3, H, W) normalised target images, as the teacher sees them; None in source-only
            training.
        pseudo_label: the teacher's, of ``target``.
        mixed: source classes pasted onto ``target``, strongly augmented.
        reference_features: the frozen ImageNet encoder's deepest features of the source images.
        outputs: the student's, by view name.
        pixels: targets of the prototype losses by view name; empty until prototypes exist.
    """

    iteration: int
    source: View
    target: Tensor | None = None
    pseudo_label: PseudoLabel | None = None
    mixed: View | None = None
    reference_features: Tensor | None = None
    outputs: dict[str, ViewOutputs] = field(default_factory=dict)
    pixels: dict[str, PixelTargets] = field(default_factory=dict)

    def views(self) -> Iterator[tuple[str, View]]:
        """The views that exist by now, in the order in which the student sees them."""
        for name, view in (("source", self.source), ("mixed", self.mixed)):
            if view is not None:
                yield name, view

    @property
    def images(self) -> dict[str, Tensor]:
        """The student's input."""
        return {name: view.images for name, view in self.views()}
