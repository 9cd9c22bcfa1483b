"""Equal bits of equal runs on a GPU."""

import os

import torch


def use_deterministic_algorithms() -> None:
    """Lets torch, cuBLAS and cuDNN add in a fixed order only, for the rest of the process. Call it
    before the first matrix product on a GPU.

    Operators without such an algorithm raise RuntimeError.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.deterministic = True
