"""HRDA: a half-size context and a full-size detail crop of every view, fused by a learned
attention.

Legend: B images, C classes, (H, W) pixels.

Source: Hoyer et al., HRDA (ECCV 2022), arXiv:2204.13132.
"""

from collections.abc import Mapping, Sequence

from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor, nn

from ..structures import Box, Detail, Outputs
from ..structures.step import DETAIL
from .daformer_head import LevelFusion, conv_norm_relu, pixel_classifier
from .inference import sliding_window
from .scale_fusion import CONTEXT_CELL, DETAIL_CELL, context_image, fuse_scales, sample_detail_box
from .segmentor import MPCLSegmentor


class ScaleAttention(LevelFusion):
    """Context features -> how much each class of each cell trusts the detail, in (0, 1)."""

    def __init__(
        self,
        input_shape: dict[str, ShapeSpec],
        *,
        num_classes: int,
        channels: int,
        dropout: float,
        norm: str,
    ) -> None:
        """Arguments as of :class:`~mpcl.modeling.daformer_head.DAFormerHead`."""
        super().__init__(input_shape, channels)
        self.fusion = conv_norm_relu(channels * len(self.in_features), channels, 1, norm)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = pixel_classifier(channels, num_classes)

    def forward(self, features: dict[str, Tensor]) -> Tensor:
        """Encoder levels -> (B, C, h, w) at the finest level's size."""
        fused = self.dropout(self.fusion(self.stack(features)))
        return self.classifier(fused).sigmoid()


@META_ARCH_REGISTRY.register()
class HRDASegmentor(MPCLSegmentor):
    """:class:`MPCLSegmentor` that sees context and detail with the same encoder and heads.

    In training each view gets one random detail crop, which is part of its outputs; wherever whole
    images are labelled (tests, pseudo-labels) the detail is a sliding window over all of them.
    """

    # Both scales' grids lie on the context's cells.
    size_divisor = CONTEXT_CELL
    smallest_side = 2 * MPCLSegmentor.smallest_side  # of the context, at half size

    @configurable
    def __init__(
        self, *, scale_attention: ScaleAttention, detail_size: Sequence[int], **segmentor
    ) -> None:
        """
        Args:
            detail_size: (height, width) of the detail crop, multiples of 16 pixels.
            segmentor: arguments of :class:`MPCLSegmentor`.
        """
        super().__init__(**segmentor)
        self.scale_attention = scale_attention
        self.detail_size = (detail_size[0], detail_size[1])

    @classmethod
    def from_config(cls, cfg):
        arguments = super().from_config(cfg)
        head = cfg.MODEL.SEM_SEG_HEAD
        shape = arguments["backbone"].output_shape()
        attention = ScaleAttention(
            {name: shape[name] for name in head.IN_FEATURES},
            num_classes=head.NUM_CLASSES,
            channels=head.CONVS_DIM,
            dropout=head.DROPOUT,
            norm=head.NORM,
        )
        return {
            **arguments,
            "scale_attention": attention,
            "detail_size": cfg.MODEL.HRDA.DETAIL_SIZE,
        }

    @property
    def embeds_detail(self) -> bool:
        """Whether the detail is clustered, too (PROTOTYPES.SCALES)."""
        return self.prototype_head is not None and DETAIL in self.prototype_head.banks

    def encoder_input(self, images: Tensor) -> Tensor:
        """The context: (B, 3, H/2, W/2)."""
        return context_image(images)

    def forward_views(self, views: Mapping[str, Tensor], embed: bool = True) -> dict[str, Outputs]:
        """Contexts and details of all views pass the encoder together, where they have one size."""
        sizes = [(images.shape[-2], images.shape[-1]) for images in views.values()]
        boxes = [sample_detail_box(size, self.detail_size) for size in sizes]
        contexts = [self.encoder_input(images) for images in views.values()]
        details = [box.crop(images) for box, images in zip(boxes, views.values())]
        features = self.encode_all([*contexts, *details])
        by_view = zip(views, boxes, features[: len(views)], features[len(views) :])
        return {name: self._fuse(*each, embed) for name, *each in by_view}

    def _fuse(
        self, box: Box, features: dict[str, Tensor], detail_features: dict[str, Tensor], embed: bool
    ) -> Outputs:
        context = self.forward_features(features, embed)
        detail = self.forward_features(detail_features, embed and self.embeds_detail)
        attention = self.scale_attention(features)
        return Outputs(
            fuse_scales(context.logits, detail.logits, attention, box),
            context.embeddings,
            context.features,
            context.fused,
            Detail(box, detail.logits, detail.embeddings, detail.fused),
        )

    def score(self, images: Tensor) -> Tensor:
        """Fused class scores (B, C, H/4, W/4); H and W must be multiples of 8.

        All detail windows pass in one forward, and the encoder sees the context with them where it
        has their size: where batch norm uses batch statistics (of the labelling teacher), these are
        of all windows together, as in HRDA.
        """
        context: list[Tensor] = []

        def detail_scores(windows: Tensor) -> Tensor:
            features, detail = self.encode_all([self.encoder_input(images), windows])
            # Before the detail, as in HRDA: the heads' batch norms see the two in this order.
            context.extend((self.class_scores(features), self.scale_attention(features)))
            return self.class_scores(detail)

        detail = sliding_window(
            detail_scores,
            images,
            crop=self.detail_size,
            stride=(self.detail_size[0] // 2, self.detail_size[1] // 2),
            cell=DETAIL_CELL,
        )
        scores, attention = context
        return fuse_scales(scores, detail, attention)
