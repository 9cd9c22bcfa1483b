"""How much each loss pulls, and where to: gradients at the encoder's deepest features (of two
resolutions: the context's)."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

WATCHED = ("loss_contrast", "loss_consistency")
REFERENCE = ("loss_sem_seg", "loss_sem_seg_mix")


def gradient_share(losses: Mapping[str, Tensor], features: Sequence[Tensor]) -> dict[str, Tensor]:
    """Each prototype loss's gradient norm over that of the segmentation losses, and the cosine of
    the angle between the two gradients: 1 = the prototypes ask for what the classifier asks for, 0
    = for something else or nothing, -1 = the opposite.

    Health check of the similarity's scale: with the paper's weights both together are 0.1 to 0.5 in
    the runs of docs/RESULTS.md; values above 1 mean that they drown the classifier. Costs a few
    extra backward passes through the heads.

    Args:
        losses: of one step, with their graph.
        features: what the gradients are taken at.
    """
    classifier = _gradients(torch.stack([losses[name] for name in REFERENCE]).sum(), features)
    norm = _dot(classifier, classifier).sqrt().clamp_min(1e-12)
    scalars: dict[str, Tensor] = {}
    for name in WATCHED:
        prototype, label = _gradients(losses[name], features), name.removeprefix("loss_")
        length = _dot(prototype, prototype).sqrt()
        cosine = _dot(classifier, prototype) / (norm * length.clamp_min(1e-12))
        scalars |= {f"gradient_share/{label}": length / norm, f"gradient_cosine/{label}": cosine}
    return scalars


def _gradients(loss: Tensor, features: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of each of the features; zero where the loss does not depend on it."""
    return torch.autograd.grad(loss, features, retain_graph=True, materialize_grads=True)


def _dot(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> Tensor:
    return torch.stack([(a.float() * b.float()).sum() for a, b in zip(one, other)]).sum()
