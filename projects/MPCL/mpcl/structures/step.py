"""Everything that one iteration knows: the only channel between trainer, hook and criterion.

Legend: B images, C classes, K prototypes a class, D embedding size, N pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .view import Box, View, at_cell_centres

# The scales at which a student embeds a view: the whole of it (at half size, if there are several),
# and its detail crop.
CONTEXT, DETAIL = "context", "detail"


@dataclass
class Detail:
    """What a multi-resolution student says about its high-resolution crop of a view.

    Attributes:
        box: the crop, in pixels of the view; one for all images.
        logits: (B, C, h, w) of the crop alone, before fusion.
        embeddings: (B, D, h, w) float32; None without a prototype head.
        fused: (B, F, h, w) features that the classifier and a shared prototype head read.
    """

    box: Box
    logits: Tensor
    embeddings: Tensor | None
    fused: Tensor


@dataclass
class Outputs:
    """What the student says about one view.

    Attributes:
        logits: (B, C, h, w) class logits at stride 4.
        embeddings: (B, D, h, w) float32 normalised embeddings at stride 4 (of a multi-resolution
            student: of its half-size context, at stride 8); None without a prototype head.
        features: (B, C4, h/8, w/8) deepest encoder features (half of that for the context).
        fused: (B, F, h, w) features that the classifier and a shared prototype head read.
        detail: the high-resolution crop of a multi-resolution student; None = there is one scale.
    """

    logits: Tensor
    embeddings: Tensor | None
    features: Tensor
    fused: Tensor
    detail: Detail | None = None


@dataclass
class Pixels:
    """A view on the grid of its embeddings.

    Attributes:
        embeddings: (B, D, h, w) float32; h and w may be any fraction of the view's size.
        label: (B, h, w) int64 in [0, C]; C = ignored.
        weight, trusted, from_source: (B, h, w), see :class:`View`; ignored pixels are not trusted.
        cluster: (B, h, w) int64 in [0, C*K], class * K + k: the assigned prototype; C*K = none.
    """

    embeddings: Tensor
    label: Tensor
    weight: Tensor
    trusted: Tensor
    from_source: Tensor
    cluster: Tensor

    @classmethod
    def of(cls, view: View, embeddings: Tensor, num_classes: int, num_prototypes: int) -> "Pixels":
        """Labels, weights and masks where the embeddings are; no cluster is assigned yet."""
        size = embeddings.shape[-2:]
        # The ignore value lies above all classes.
        label = at_cell_centres(view.label, size).clamp(max=num_classes)
        weight, trusted, from_source = (
            at_cell_centres(pixel_map, size)
            for pixel_map in (view.weight, view.trusted, view.from_source)
        )
        trusted = trusted & (label < num_classes)
        cluster = torch.full_like(label, num_classes * num_prototypes)
        return cls(embeddings, label, weight, trusted, from_source, cluster)

    @classmethod
    def cat(cls, views: Sequence["Pixels"]) -> "Pixels":
        """The images of several views, one view after the other."""
        return cls(
            **{key: torch.cat([vars(view)[key] for view in views]) for key in vars(views[0])}
        )

    @property
    def rows(self) -> Tensor:
        """(N, D) embeddings in (B, h, w) order, in which the other maps are when flattened."""
        return self.embeddings.permute(0, 2, 3, 1).flatten(0, 2)


@dataclass
class Step:
    """Filled from top to bottom in the course of an iteration, and dropped before the next.

    Attributes:
        iteration: of the run, from 0.
        source: images and ground truth.
        target: the target images; the teacher fills in their labels. None in source-only training.
        files: names of the batch's images, for messages.
        mixed: source classes pasted onto ``target``, strongly augmented.
        masked: images with hidden blocks (MIC); None = not used. Has a forward of its own.
        reference_features: the frozen ImageNet encoder's deepest features of the source images.
        outputs: the student's, by the name of the view.
        pixels: of the prototype losses, by scale and name of the view.
    """

    iteration: int
    source: View
    target: View | None = None
    files: tuple[str, ...] = ()
    mixed: View | None = None
    masked: View | None = None
    reference_features: Tensor | None = None
    outputs: dict[str, Outputs] = field(default_factory=dict)
    pixels: dict[str, dict[str, Pixels]] = field(default_factory=dict)

    @classmethod
    def from_batch(
        cls,
        iteration: int,
        batch: Mapping[str, Sequence[Mapping[str, Any]]],
        normalize: Callable[[Any], Tensor],
    ) -> "Step":
        """The images of the paired loader on the device.

        Args:
            batch: dataset dicts of ``source``, and of ``target`` unless training is source-only.
                Labels are of any integer type.
            normalize: the student's, from dataset dicts to images on its device.
        """

        def stacked(records: Sequence[Mapping[str, Any]], key: str, images: Tensor) -> Tensor:
            # In this order: the loader's tensors are pinned, a stack of them would be waited for.
            values = [record[key].to(images.device, non_blocking=True) for record in records]
            return torch.stack(values)

        files = tuple(record["file_name"] for records in batch.values() for record in records)
        images = normalize(batch["source"])
        label = stacked(batch["source"], "sem_seg", images).long()  # travels as uint8
        source = View.of_source(images, label)
        if "target" not in batch:
            return cls(iteration, source, files=files)
        images = normalize(batch["target"])
        shown, valid = (stacked(batch["target"], key, images) for key in ("shown", "valid"))
        return cls(iteration, source, View.of_target(images, shown, valid), files)

    @property
    def views(self) -> dict[str, View]:
        """The views of the main forward, in the order in which the student sees them."""
        views = {"source": self.source, "mixed": self.mixed}
        return {name: view for name, view in views.items() if view is not None}

    @property
    def images(self) -> dict[str, Tensor]:
        """The student's input."""
        return {name: view.images for name, view in self.views.items()}

    @property
    def fused(self) -> list[Tensor]:
        """The fused features of all views, of context and detail."""
        scales = (each for own in self.outputs.values() for each in (own, own.detail))
        return [scale.fused for scale in scales if scale is not None]

    def pixels_at(self, scale: str, num_classes: int, num_prototypes: int) -> dict[str, Pixels]:
        """The pixels of each view at a scale of the student, ``context`` or ``detail``."""
        pixels = {}
        for name, view in self.views.items():
            outputs = self.outputs[name]
            seen, embeddings = view, outputs.embeddings
            if scale == DETAIL:
                assert outputs.detail is not None
                seen, embeddings = view.crop(outputs.detail.box), outputs.detail.embeddings
            assert embeddings is not None
            pixels[name] = Pixels.of(seen, embeddings, num_classes, num_prototypes)
        return pixels
