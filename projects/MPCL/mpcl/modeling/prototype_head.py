"""Auxiliary prototype head: pixel embeddings, the prototypes and the feature banks. Used in
training, and for predictions by prototypes."""

from collections.abc import Mapping

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from ..prototypes import TYPES
from ..prototypes.bank import FeatureBank
from ..prototypes.base import Prototypes
from ..prototypes.embedding import normalize_embeddings
from .daformer_head import ContextAwareFusion


class PrototypeHead(nn.Module):
    """Projects fused features to the prototype space and owns what lives there (h_proto of the
    paper).

    The prototypes and the banks are buffers: they are saved in the model's checkpoint and never see
    the optimizer.
    """

    @configurable
    def __init__(
        self,
        *,
        prototypes: Prototypes,
        banks: Mapping[str, FeatureBank],
        fused_channels: int,
        fusion: ContextAwareFusion | None,
        normalize: str,
    ) -> None:
        """
        Args:
            banks: by scale: ``context``, and ``detail`` of a multi-resolution model.
            fused_channels: channels of the fused features that are projected.
            fusion: of the head's own; None = the decode head's features are projected.
            normalize: ``layer``, ``l2`` or ``none``, see :func:`normalize_embeddings`.
        """
        super().__init__()
        self.fusion = fusion
        self.projection = nn.Conv2d(fused_channels, prototypes.mean.shape[-1], kernel_size=1)
        self.prototypes = prototypes
        self.banks = nn.ModuleDict(banks)
        self.normalize = normalize

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        head, proto = cfg.MODEL.SEM_SEG_HEAD, cfg.PROTOTYPES
        banks = {
            scale: FeatureBank(
                head.NUM_CLASSES,
                proto.BANK.SIZE,
                proto.DIM,
                samples_per_image=proto.BANK.SAMPLES_PER_IMAGE,
            )
            for scale in proto.SCALES
        }
        fusion = None
        if proto.HEAD == "separate":
            levels = {name: input_shape[name] for name in head.IN_FEATURES}
            settings = {"dilations": head.DILATIONS, "norm": head.NORM}
            fusion = ContextAwareFusion(levels, channels=head.CONVS_DIM, **settings)
        return {
            "prototypes": TYPES[proto.TYPE].from_config(cfg),
            "banks": banks,
            "fused_channels": head.CONVS_DIM,
            "fusion": fusion,
            "normalize": proto.NORMALIZE,
        }

    def forward(self, features: dict[str, Tensor], fused: Tensor) -> Tensor:
        """Embeddings (B, D, h, w), float32, normalised over D.

        Args:
            features: encoder features; read only by a separate fusion.
            fused: (B, channels, h, w) fused features of the decode head, before its dropout and
                classifier.
        """
        if self.fusion is not None:
            fused = self.fusion(features)
        return normalize_embeddings(self.projection(fused), self.normalize)

    def class_scores(self, features: dict[str, Tensor], fused: Tensor) -> Tensor:
        """max_k sim(p_k^(c), F) of Eq. (10), (B, C, h, w); classes without prototypes never win."""
        embeddings = self(features, fused)
        batch, _, height, width = embeddings.shape
        similarity = self.prototypes.similarity(embeddings.permute(0, 2, 3, 1).flatten(0, 2))
        # Finite, because resizing would turn infinities into NaN.
        scores = similarity.amax(-1).masked_fill(~self.prototypes.started, -1e4)
        return scores.view(batch, height, width, -1).permute(0, 3, 1, 2)
