"""How much each loss pulls: gradient norms at the encoder's deepest features. Pure."""

from collections.abc import Mapping

import torch
from torch import Tensor

from .metrics import DeviceMetrics
from .step import AdaptationStep


class GradientShare:
    """Logs, every ``period`` iterations, each prototype loss's gradient norm over that of the
    segmentation losses.

    Health check of the similarity's scale: with the paper's weights both together are 0.1 to 0.5 in
    the runs of docs/RESULTS.md; values above 1 mean that they drown the classifier. Costs a few
    extra backward passes through the heads when it measures.
    """

    WATCHED = ("loss_contrast", "loss_consistency")
    REFERENCE = ("loss_sem_seg", "loss_sem_seg_mix")

    def __init__(self, period: int) -> None:
        self.period = period

    def __call__(
        self, losses: Mapping[str, Tensor], step: AdaptationStep, metrics: DeviceMetrics
    ) -> None:
        if not self.period or step.iteration % self.period or not step.pixels:
            return
        features = [out.features for out in step.outputs.values()]
        reference = sum(losses[name] for name in self.REFERENCE)
        assert isinstance(reference, Tensor)
        scale = _gradient_norm(reference, features).clamp_min(1e-12)
        for name in self.WATCHED:
            share = _gradient_norm(losses[name], features) / scale
            metrics.add({f"gradient_share/{name.removeprefix('loss_')}": share})


def _gradient_norm(loss: Tensor, features: list[Tensor]) -> Tensor:
    gradients = torch.autograd.grad(loss, features, retain_graph=True, allow_unused=True)
    norms = torch.stack([g.float().square().sum() for g in gradients if g is not None])
    return norms.sum().sqrt()
