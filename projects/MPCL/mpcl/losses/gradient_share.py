"""How much each prototype loss pulls, and where to, beside the segmentation losses."""

from collections.abc import Mapping, Sequence

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
    tensors = [tensor for group in where.values() for tensor in group]
    counts = [len(group) for group in where.values()]

    def gradients(loss: Tensor) -> Sequence[Tensor]:
        return torch.autograd.grad(loss, tensors, retain_graph=True, materialize_grads=True)

    def dots(one: Sequence[Tensor], other: Sequence[Tensor]) -> list[Tensor]:
        """Inner product in each place."""
        of_tensors = torch.stack([(a.float() * b.float()).sum() for a, b in zip(one, other)])
        return [of_place.sum() for of_place in torch.split(of_tensors, counts)]

    classifier = gradients(torch.stack([losses[name] for name in REFERENCE]).sum())
    norms = [square.sqrt().clamp_min(1e-12) for square in dots(classifier, classifier)]
    scalars: dict[str, Tensor] = {}
    for name in WATCHED:  # the gradients of one are gone before the next one's are computed
        prototypes, label = gradients(losses[name]), name.removeprefix("loss_")
        lengths = [square.sqrt() for square in dots(prototypes, prototypes)]
        together = dots(classifier, prototypes)
        for place, norm, length, dot in zip(where, norms, lengths, together):
            scalars[f"gradient_share/{place}/{label}"] = length / norm
            scalars[f"gradient_cosine/{place}/{label}"] = dot / (norm * length.clamp_min(1e-12))
    return scalars
