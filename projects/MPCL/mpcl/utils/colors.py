"""What a picture of a prediction needs: class ids, and their colours."""

import numpy as np
import torch
from torch import Tensor, nn

IGNORED_COLOR = (0, 0, 0)


def colorize(label: Tensor | np.ndarray, colors: list) -> np.ndarray:
    """(H, W) class ids to an (H, W, 3) uint8 RGB picture; ids without a colour are black."""
    palette = np.array([*map(tuple, colors), IGNORED_COLOR], np.uint8)
    ids = label.cpu().numpy() if isinstance(label, Tensor) else label
    return palette[np.minimum(ids, len(colors))]


def denormalize(network: nn.Module, image: Tensor) -> np.ndarray:
    """A normalised image (3, H, W) as an (H, W, 3) uint8 RGB picture.

    Args:
        network: whose ``pixel_mean`` and ``pixel_std`` it was normalised with.
    """
    pixels = (image * network.pixel_std + network.pixel_mean).clamp(0, 255).byte()
    return pixels.permute(1, 2, 0).cpu().numpy()


@torch.no_grad()
def predict(network: nn.Module, record: dict) -> Tensor:
    """(H, W) class ids of one dataset dict, in evaluation mode."""
    training = network.training
    network.eval()
    logits = network([record])[0]["sem_seg"]
    network.train(training)
    return logits.argmax(0)
