"""Training steps made of embeddings, without a student."""

import torch

from mpcl.structures import Outputs, Step, View


def make_step(iteration, **views):
    """A step of views (embeddings (B, D, h, w), label, trusted), one grid cell a pixel."""
    step = Step(iteration, source=None)
    for name, (embeddings, label, trusted) in views.items():
        images = embeddings.detach().new_zeros(len(label), 3, *label.shape[1:])
        weight, from_source = torch.ones_like(images[:, 0]), torch.ones_like(trusted)
        setattr(step, name, View(images, label, weight, trusted, from_source))
        step.outputs[name] = Outputs(embeddings, embeddings, embeddings, embeddings)
    return step
