"""Feature bank: the most recent embeddings of every class, in half precision.

Legend: B images, C classes, K prototypes a class, D embedding size, N pixels.

The bank starts the prototypes (K-means) and widens the pool on which clusters are balanced: one
batch may show a single mode of a class, and equal shares within it would tear that mode apart. All
ranks hold the same bank.
"""

import torch
from torch import Tensor, nn

from ..utils.distributed import gather_over_ranks, rank, world_size
from .numerics import sample_per_group


class FeatureBank(nn.Module):
    """A ring of ``size`` embeddings per class.

    Buffers (in the checkpoint, equal on all ranks): features (C, size, D) float16; fill (C,) int64,
    embeddings held; cursor (C,) int64, the slot written next.

    Source: MPCL, section III ("feature bank") and Fig. 5.

    Args:
        num_classes: C.
        size: slots per class.
        dim: D.
        samples_per_image: most embeddings taken of one class from one image, so that no image can
            fill a ring.
    Raises: ValueError: an argument is not positive.
    """

    features: Tensor
    fill: Tensor
    cursor: Tensor

    def __init__(self, num_classes: int, size: int, dim: int, *, samples_per_image: int = 64):
        super().__init__()
        sizes = {"num_classes": num_classes, "size": size, "dim": dim}
        sizes["samples_per_image"] = samples_per_image
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1")
        self.num_classes, self.size, self.samples_per_image = num_classes, size, samples_per_image
        self.register_buffer("features", torch.zeros(num_classes, size, dim, dtype=torch.float16))
        self.register_buffer("fill", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("cursor", torch.zeros(num_classes, dtype=torch.int64))

    @property
    def filled(self) -> Tensor:
        """(C, size) bool: slots that hold an embedding."""
        return torch.arange(self.size, device=self.fill.device) < self.fill.unsqueeze(1)

    @torch.no_grad()
    def push_(self, embeddings: Tensor, label: Tensor) -> None:
        """Stores a random few embeddings of every class and image of all ranks; no host read. Every
        rank must call it.

        Embeddings that are not finite in half precision never enter. If one call brings a class
        more than ``size`` embeddings, ``size`` of them are stored.

        Args:
            embeddings: (B, D, h, w), the same shape on all ranks.
            label: (B, h, w) int64 in [0, C]; C takes no part.
        """
        rows = gather_over_ranks(self._sample_images(embeddings, label))  # (images, C, n, D)
        rows = rows.transpose(0, 1).flatten(1, 2)
        valid = rows.isfinite().all(-1)
        # Valid rows first: together with the places after them they address each slot of the ring
        # at most once.
        order = valid.int().argsort(dim=1, descending=True, stable=True)[:, : self.size]
        valid = valid.gather(1, order)
        classes = torch.arange(self.num_classes, device=order.device).unsqueeze(1)
        slots = (
            self.cursor.unsqueeze(1) + torch.arange(order.shape[1], device=order.device)
        ) % self.size
        kept = self.features[classes, slots]
        self.features[classes, slots] = torch.where(valid.unsqueeze(-1), rows[classes, order], kept)
        pushed = valid.sum(1)
        self.cursor.copy_((self.cursor + pushed) % self.size)
        self.fill.copy_((self.fill + pushed).clamp(max=self.size))

    def _sample_images(self, embeddings: Tensor, label: Tensor) -> Tensor:
        """(B, C, n, D) float16 samples of each class of each image; places without a pixel hold
        NaN.
        """
        num_images, _, height, width = embeddings.shape
        image = torch.arange(num_images, device=label.device).view(-1, 1, 1)
        group = torch.where(label < self.num_classes, image * self.num_classes + label, -1)
        num_groups = num_images * self.num_classes
        index, valid = sample_per_group(group.flatten(), num_groups, self.samples_per_image)
        pixel = (index % max(1, height * width)).view(num_images, self.num_classes, index.shape[1])
        rows = embeddings.flatten(2).transpose(1, 2)[image, pixel].to(self.features.dtype)
        return rows.masked_fill(~valid.view_as(pixel).unsqueeze(-1), float("nan"))

    @torch.no_grad()
    def sample(self, num_per_class: int) -> tuple[Tensor, Tensor]:
        """Draws from every class uniformly, with replacement, each rank on its own. Of a class that
        holds fewer than all ranks ask for, each embedding is given once, to one rank: copies would
        pass for pixels.

        Returns:
            points (C, n, D) float32, and valid (C, n) bool, False for places without an embedding.
        """
        key = torch.rand(self.num_classes, num_per_class, device=self.fill.device)
        fill = self.fill.unsqueeze(1)
        place = rank() + world_size() * torch.arange(num_per_class, device=key.device)
        scarce = fill < world_size() * num_per_class
        slots = torch.where(scarce, place, (key * fill).long())
        slots = torch.minimum(slots, (fill - 1).clamp_min(0))
        classes = torch.arange(self.num_classes, device=slots.device).unsqueeze(1)
        return self.features[classes, slots].float(), place < fill
