"""Our MiT and transformers' SegFormer with equal weights, checked for equal outputs."""

import torch
from torch import Tensor, nn

from mpcl.checkpoint.encoder_names import convert
from mpcl.modeling.mit import VARIANTS, MixTransformer


def pair(variant: str, device: str) -> tuple[MixTransformer, nn.Module]:
    """Ours and theirs, in evaluation mode; theirs with the original's LayerNorm eps, on SDPA."""
    from transformers import SegformerConfig, SegformerModel

    widths, depths = VARIANTS[variant]
    torch.manual_seed(0)
    config = SegformerConfig(
        hidden_sizes=list(widths),
        depths=list(depths),
        drop_path_rate=0.0,
        attn_implementation="sdpa",
    )
    theirs = SegformerModel(config).eval()
    for name, module in theirs.named_modules():
        if isinstance(module, nn.LayerNorm):  # 1e-5 everywhere; the original mixes two
            behind_convolution = "patch_embeddings" in name or "sequence_reduction" in name
            module.eps = 1e-5 if behind_convolution else 1e-6
    ours = MixTransformer(variant=variant, drop_path=0.0).eval()
    ours.load_state_dict(convert(theirs.state_dict()).state)
    return ours.to(device), theirs.to(device)


def deepest(features: dict[str, Tensor]) -> Tensor:
    return features["stage4"]


def assert_equal_outputs(ours: nn.Module, theirs: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        mine, other = deepest(ours(images)), theirs(images).last_hidden_state
    error = ((mine - other).abs().max() / other.abs().max()).item()
    if error > 1e-4:
        raise RuntimeError(
            f"the two encoders differ by {error:.1e} relative; expected equal outputs"
        )
