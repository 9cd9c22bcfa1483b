"""Weights of networks that do not learn, cast for autocast once and not at every call: it keeps
the casts of learning parameters only."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from .dilated_conv import DilatedDepthwiseConv

LAYERS = (nn.Linear, nn.Conv2d, DilatedDepthwiseConv)


def layer_weights(network: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of linear layers and convolutions, which autocast casts.

    Not of others' subclasses, which may compute with them in float32 first (weight
    standardisation).
    """
    layers = (module for module in network.modules() if type(module) in LAYERS)
    return [weight for layer in layers for weight in layer.parameters(recurse=False)]


@contextmanager
def cast_weights(network: nn.Module) -> Iterator[None]:
    """While it lasts, the :func:`layer_weights` of a network without gradients have the type that
    autocast gives them, by one operation for all; then they are what they were. Outside of
    autocast nothing is cast. Predictions are equal to the last bit.
    """
    weights = layer_weights(network)
    device = weights[0].device.type if weights else "cpu"
    if not weights or not torch.is_autocast_enabled(device):
        yield
        return
    dtype = torch.get_autocast_dtype(device)
    exact = [weight.data for weight in weights]
    cast = [torch.empty_like(weight, dtype=dtype) for weight in exact]
    torch._foreach_copy_(cast, exact)
    try:
        for weight, value in zip(weights, cast):
            weight.data = value
        yield
    finally:
        for weight, value in zip(weights, exact):
            weight.data = value
