"""Everything that one iteration knows: the only channel between trainer, hook and criterion.

C classes, K prototypes a class, N pixels of a view on the embedding grid.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from ..self_training.pseudo_label import PseudoLabel
from .view import CONTEXT, DETAIL, View, ViewOutputs


@dataclass
class ScaleView:
    """What one scale of the student sees of a view, and its embeddings of that.

    Attributes:
        view: the view, or the part that the detail crop shows.
        embeddings: (B, D, h, w) float32; h and w may be any fraction of the view's size.
    """

    view: View
    embeddings: Tensor

    @property
    def pixels(self) -> Tensor:
        """(B*h*w, D) embeddings in (B, h, w) order."""
        return self.embeddings.permute(0, 2, 3, 1).flatten(0, 2)


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
    """Filled from top to bottom in the course of an iteration, and dropped before the next.

    Attributes:
        iteration: of the run, from 0.
        source: images and ground truth.
        target: (B, 3, H, W) normalised target images, as the teacher sees them; None in source-only
            training.
        target_valid: (B, H, W) bool, False where pseudo-labels are not to be trusted: beyond the
            margins of the image; None = nowhere.
        files: names of the batch's images, for messages.
        pseudo_label: the teacher's, of ``target``.
        mixed: source classes pasted onto ``target``, strongly augmented.
        masked: images with hidden blocks (MIC); None = not used.
        reference_features: the frozen ImageNet encoder's deepest features of the source images.
        outputs: the student's, by view name.
        pixels: targets of the prototype losses by scale and view name; empty until prototypes
            exist.
        batch_label: labels of the source images of all parts; None = there are no parts.
        is_first, is_last: of the parts that the student sees one after the other; see
            :meth:`split`.
    """

    iteration: int
    source: View
    target: Tensor | None = None
    target_valid: Tensor | None = None
    files: tuple[str, ...] = ()
    pseudo_label: PseudoLabel | None = None
    mixed: View | None = None
    masked: View | None = None
    reference_features: Tensor | None = None
    outputs: dict[str, ViewOutputs] = field(default_factory=dict)
    pixels: dict[str, dict[str, PixelTargets]] = field(default_factory=dict)
    batch_label: Tensor | None = None
    is_first: bool = True
    is_last: bool = True

    def split(self, parts: int) -> list["AdaptationStep"]:
        """The step in equal parts of its images, for a student that has no memory for all at once.
        What the teacher said, it said of all of them.

        Raises:
            ValueError: the images do not divide.
        """
        if parts == 1:
            return [self]
        fields = ("source", "mixed", "masked", "pseudo_label")
        chunks = {name: value.split(parts) for name in fields if (value := getattr(self, name))}
        for name in ("target", "target_valid", "reference_features"):
            if (value := getattr(self, name)) is not None:
                chunks[name] = value.chunk(parts)
        return [
            replace(
                self,
                **{name: chunk[i] for name, chunk in chunks.items()},
                outputs={},
                pixels={},
                batch_label=self.source.label,
                is_first=i == 0,
                is_last=i == parts - 1,
            )
            for i in range(parts)
        ]

    def views(self) -> Iterator[tuple[str, View]]:
        """The views of the main forward that exist by now, in the order in which the student sees
        them. The masked view has a forward of its own."""
        for name, view in (("source", self.source), ("mixed", self.mixed)):
            if view is not None:
                yield name, view

    @property
    def images(self) -> dict[str, Tensor]:
        """The student's input."""
        return {name: view.images for name, view in self.views()}

    def scales(self) -> dict[str, dict[str, ScaleView]]:
        """Views and their embeddings by scale and name: ``context``, and ``detail`` where the
        student has several resolutions. Empty without a prototype head."""
        seen: dict[str, dict[str, ScaleView]] = {}
        for name, view in self.views():
            outputs = self.outputs[name]
            detail = outputs.detail
            if outputs.embeddings is not None:
                seen.setdefault(CONTEXT, {})[name] = ScaleView(view, outputs.embeddings)
            if detail is not None and detail.embeddings is not None:
                part = ScaleView(view.crop(detail.box), detail.embeddings)
                seen.setdefault(DETAIL, {})[name] = part
        return seen
