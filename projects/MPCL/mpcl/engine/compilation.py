"""torch.compile for the encoders of a training (MODEL.COMPILE)."""

from contextlib import AbstractContextManager

import torch
from torch import nn
from torch._functorch import config as functorch_config

_GRAPHS = 256  # of one kind of block, at most


def compile_blocks_(encoder: nn.Module) -> None:
    """Compiles an encoder's blocks when they are first called; names in its state dict stay.

    Blocks of one shape share what is compiled, so that it takes a graph for each stage and size of
    batch, not for each block. What has no ``blocks``, as a ResNet, is compiled whole.

    Raises: ValueError: torch is older than 2.6.
    """
    if not hasattr(torch.compiler, "set_stance"):
        raise ValueError(f"MODEL.COMPILE needs torch 2.6 or newer, this is {torch.__version__}")
    torch._dynamo.config.recompile_limit = _GRAPHS
    # Buffers given away in a backward pass allow no second one: gradient_share needs several.
    functorch_config.donated_buffer = False
    blocks = [
        block
        for name, module in encoder.named_modules()
        if name.rpartition(".")[2] == "blocks"
        for block in module.children()
    ]
    for module in blocks or [encoder]:
        module.compile(dynamic=False)


def without_compiling() -> AbstractContextManager:
    """While it lasts, what has not been compiled runs as it is: images of an evaluation may have
    any size."""
    return torch.compiler.set_stance("eager_on_recompile")
