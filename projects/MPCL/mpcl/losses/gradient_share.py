"""How much each prototype loss pulls, and where to, beside the segmentation losses."""

from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

WATCHED = ("loss_contrast", "loss_consistency")
REFERENCE = ("loss_sem_seg", "loss_sem_seg_mix")


def gradient_share(
    losses: Mapping[str, Tensor], where: Mapping[str, Sequence[Tensor]]
) -> dict[str, Tensor]:
    """Each prototype loss's gradient norm over that of the segmentation losses, and the cosine of
    the angle between the two gradients: 1 = the prototypes ask for what the classifier asks for, 0
    = for something else or nothing, -1 = the opposite.

    Health check of the similarity's scale: values above 1 mean that the prototypes drown the
    classifier. Costs three extra backward passes.

    Args:
        losses: of one step, with their graph.
        where: the tensors at which gradients are taken, under the name that the scalars get:
            ``{"fused": ..., "encoder": ...}``.
    """
    places = list(where)
    tensors = [tensor for place in places for tensor in where[place]]
    counts = [len(where[place]) for place in places]

    def gradients(loss: Tensor) -> list[tuple[Tensor, ...]]:
        flat = torch.autograd.grad(loss, tensors, retain_graph=True, materialize_grads=True)
        rest = iter(flat)
        return [tuple(islice(rest, count)) for count in counts]

    classifier = gradients(torch.stack([losses[name] for name in REFERENCE]).sum())
    scalars: dict[str, Tensor] = {}
    for name in WATCHED:  # the gradients of one are gone before the next one's are computed
        label = name.removeprefix("loss_")
        scalars |= _compared(label, places, classifier, gradients(losses[name]))
    return scalars


def _compared(
    label: str,
    places: Sequence[str],
    classifier: Sequence[tuple[Tensor, ...]],
    prototypes: Sequence[tuple[Tensor, ...]],
) -> dict[str, Tensor]:
    scalars = {}
    for place, own, prototype in zip(places, classifier, prototypes):
        norm = _dot(own, own).sqrt().clamp_min(1e-12)
        length = _dot(prototype, prototype).sqrt()
        cosine = _dot(own, prototype) / (norm * length.clamp_min(1e-12))
        scalars[f"gradient_share/{place}/{label}"] = length / norm
        scalars[f"gradient_cosine/{place}/{label}"] = cosine
    return scalars


def _dot(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([(a.float() * b.float()).sum() for a, b in zip(one, other)]).sum()
