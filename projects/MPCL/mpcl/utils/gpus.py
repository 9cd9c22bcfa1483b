"""What a GPU can do with the PyTorch that is installed; looks at numbers and launches nothing."""

import re

import torch

_BFLOAT16 = (8, 0)  # compute capability from which on a GPU has arithmetic in it; older emulate


def computes_bfloat16(gpu: int | torch.device) -> bool:
    """Whether a GPU has arithmetic in bfloat16. ``torch.cuda.is_bf16_supported`` says yes of GPUs
    that emulate it, many times slower, for which cuDNN has no convolutions."""
    return torch.cuda.get_device_capability(gpu) >= _BFLOAT16


def has_kernels(index: int) -> bool:
    """Whether this PyTorch was built for a GPU: for its generation, up to its minor version, or as
    code that the driver translates for any later one."""
    if torch.version.cuda is None:  # AMD's capabilities mean something else
        return True
    gpu = torch.cuda.get_device_capability(index)
    for name in torch.cuda.get_arch_list():
        if found := re.fullmatch(r"(sm|compute)_(\d+)(\d)", name):
            built = int(found[2]), int(found[3])
            if built <= gpu and (found[1] == "compute" or built[0] == gpu[0]):
                return True
    return False
