"""Meta-architecture: views in, logits and embeddings out in training; dataset dicts in, predictions
out at test time."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, Backbone, build_backbone, build_sem_seg_head
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..losses.segmentation import segmentation_loss
from ..structures import Outputs, View
from ..utils.gpus import computes_bfloat16
from .daformer_head import DAFormerHead
from .inference import sliding_window, whole_image
from .prototype_head import PrototypeHead
from .test_time_augmentation import TestTimeAugmentation

Inference = Callable[..., Tensor]


@META_ARCH_REGISTRY.register()
class MPCLSegmentor(nn.Module):
    """A backbone (of the paper: MiT), a DAFormer head and an auxiliary prototype head.

    Knows nothing of teachers, mixing or losses between domains: those are the trainer's.
    """

    size_divisor = 1  # images of :meth:`score` must be multiples of it
    smallest_side = 32  # below it the encoder has no key left at its first level

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        sem_seg_head: DAFormerHead,
        prototype_head: PrototypeHead | None,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        inference: Inference = whole_image,
        augmentation: TestTimeAugmentation | None = None,
        predict_by_prototypes: bool = False,
        prototype_temperature: float = 1.0,
        predict_in_bfloat16: bool = False,
        detail_weight: float = 0.0,
    ) -> None:
        """
        Args:
            inference: maps (network, images) to logits at the images' size: whole image or sliding
                window.
            augmentation: at test time; None = images are seen once.
            predict_by_prototypes: predict by (10) where there is a prototype head.
            prototype_temperature: of the softmax that makes probabilities of similarities.
            predict_in_bfloat16: run :meth:`predict`'s forward passes so, on GPUs that can.
            detail_weight: lambda_d of detectron2's own training contract.
        """
        super().__init__()
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head
        self.prototype_head = prototype_head
        shapes = backbone.output_shape()
        self.deepest_feature = max(shapes, key=lambda name: shapes[name].stride)
        self.encoder_has_batch_norm = any(isinstance(m, _BatchNorm) for m in backbone.modules())
        self.inference = inference
        self.augmentation = augmentation
        self.predict_by_prototypes = predict_by_prototypes
        self.prototype_temperature = prototype_temperature
        self.predict_in_bfloat16 = predict_in_bfloat16
        self.detail_weight = detail_weight
        self.register_buffer(
            "pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), persistent=False
        )
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), persistent=False)

    @classmethod
    def from_config(cls, cfg):
        backbone = build_backbone(cfg)
        shape, wanted = backbone.output_shape(), cfg.MODEL.SEM_SEG_HEAD.IN_FEATURES
        if unknown := [name for name in wanted if name not in shape]:
            raise ValueError(
                f"MODEL.SEM_SEG_HEAD.IN_FEATURES names {', '.join(unknown)}; the backbone "
                f"{cfg.MODEL.BACKBONE.NAME} has {', '.join(shape)}"
            )
        slide = cfg.TEST.SLIDE
        return {
            "backbone": backbone,
            "sem_seg_head": build_sem_seg_head(cfg, shape),
            "prototype_head": PrototypeHead(cfg, shape) if cfg.PROTOTYPES.TYPE != "none" else None,
            "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
            "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
            "inference": partial(
                sliding_window, crop=slide.CROP, stride=slide.STRIDE, batch_size=slide.BATCH
            )
            if cfg.TEST.INFERENCE == "slide"
            else whole_image,
            "augmentation": TestTimeAugmentation.from_config(cfg),
            "predict_by_prototypes": cfg.TEST.OUTPUT == "prototypes",
            "prototype_temperature": cfg.PROTOTYPES.TEMPERATURE,
            "predict_in_bfloat16": cfg.TEST.AMP,
            "detail_weight": cfg.MODEL.HRDA.DETAIL_WEIGHT,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def forward(self, inputs: Mapping[str, Tensor] | list[dict], embed: bool = True):
        """Three contracts, told apart by the input and the mode.

        - ``{view name: normalised images (B, 3, H, W)}``: ``{view name: Outputs}``. ``embed`` False
          spares the prototype head.
        - list of dataset dicts, training: detectron2's contract, ``{"loss_sem_seg": scalar}``.
        - list of dataset dicts, evaluation: ``[{"sem_seg": (C, height, width) logits}]``.
        """
        if isinstance(inputs, Mapping):
            return self.forward_views(inputs, embed)
        if self.training:
            return self.supervised_losses(inputs)
        return self.predict(inputs)

    def encoder_input(self, images: Tensor) -> Tensor:
        """What the encoder sees of whole normalised images (B, 3, H, W)."""
        return images

    def encode(self, images: Tensor) -> dict[str, Tensor]:
        """Encoder features of normalised images, by level."""
        return self.backbone(self.encoder_input(images))

    def encode_all(self, inputs: Sequence[Tensor]) -> list[dict[str, Tensor]]:
        """Encoder features of several batches, in one call for all of one size: a few large
        operations in place of many small ones.

        An encoder with batch norm of its own sees one batch after the other, so that it normalises
        one domain at a time.
        """
        if self.encoder_has_batch_norm:
            return [self.backbone(images) for images in inputs]
        features: list[dict[str, Tensor]] = [{} for _ in inputs]
        for indices in _by_size(inputs):
            together = self.backbone(torch.cat([inputs[index] for index in indices]))
            for level, maps in together.items():
                parts = maps.split([len(inputs[index]) for index in indices])
                for index, part in zip(indices, parts):
                    features[index][level] = part
        return features

    def forward_views(self, views: Mapping[str, Tensor], embed: bool = True) -> dict[str, Outputs]:
        """The heads have batch norm, and see one view after the other."""
        features = self.encode_all([self.encoder_input(images) for images in views.values()])
        return {name: self.forward_features(each, embed) for name, each in zip(views, features)}

    def forward_features(self, features: dict[str, Tensor], embed: bool = True) -> Outputs:
        """What the heads say about encoder features; the prototype head only if ``embed``."""
        fused = self.sem_seg_head.fuse(features)
        embeddings = None
        if embed and self.prototype_head is not None:
            embeddings = self.prototype_head(features, fused)
        logits = self.sem_seg_head.classify(fused)
        return Outputs(logits, embeddings, features[self.deepest_feature], fused)

    def supervised_losses(self, batch: list[dict]) -> dict[str, Tensor]:
        labels = torch.stack([record["sem_seg"] for record in batch]).to(self.device).long()
        view = View.of_source(self.normalize(batch), labels)
        outputs = self.forward_views({"source": view.images})["source"]
        loss = segmentation_loss(outputs, view, self.detail_weight)
        return {"loss_sem_seg": loss}

    @property
    def temperature(self) -> float:
        """Of the softmax that turns class scores into probabilities."""
        prototypes = self.predict_by_prototypes and self.prototype_head is not None
        return self.prototype_temperature if prototypes else 1.0

    def predict(self, batch: list[dict]) -> list[dict[str, Tensor]]:
        """:meth:`predict_once`, or the mean over the test-time augmentation."""
        if self.augmentation is None:
            return self.predict_once(batch)
        return [
            {"sem_seg": self.augmentation(self.predict_once, record, self.temperature)}
            for record in batch
        ]

    def predict_once(
        self, batch: list[dict], inference: Inference | None = None
    ) -> list[dict[str, Tensor]]:
        """Logits at each record's own ``height`` and ``width`` (the image's size where they are
        missing). Images of one size pass together.

        Two successive bilinear resizes, as the baselines: stride 4 to network input, network input
        to native size.

        Args:
            inference: instead of the segmentor's own.
        """
        inference = inference or self.inference
        results: list[dict[str, Tensor]] = [{} for _ in batch]
        for indices in _by_size([record["image"] for record in batch]):
            images = self.normalize([batch[index] for index in indices])
            small = min(images.shape[-2:]) < self.smallest_side
            divisor = self.smallest_side if small else self.size_divisor
            with self._prediction_precision():
                logits = inference(self.score, images, divisor=divisor)
            for index, own in zip(indices, logits):
                record = batch[index]
                size = (record.get("height", own.shape[-2]), record.get("width", own.shape[-1]))
                results[index] = {"sem_seg": _resize(own, size)}
        return results

    def _prediction_precision(self) -> torch.autocast:
        device = self.device
        half = device.type == "cuda" and computes_bfloat16(device)
        return torch.autocast(
            device.type, torch.bfloat16, enabled=half and self.predict_in_bfloat16
        )

    def score(self, images: Tensor) -> Tensor:
        """Class scores (B, C, H/4, W/4) of whole images: of tests and of pseudo-labels."""
        return self.class_scores(self.encode(images))

    def class_scores(self, features: dict[str, Tensor]) -> Tensor:
        """The classifier's logits, or prototype similarities (10), at the finest level's size."""
        fused = self.sem_seg_head.fuse(features)
        if self.predict_by_prototypes and self.prototype_head is not None:
            return self.prototype_head.class_scores(features, fused)
        return self.sem_seg_head.classify(fused)

    def normalize(self, batch: list[dict]) -> Tensor:
        """Images of dataset dicts, all of one size, as one normalised float batch (B, 3, H, W) on
        the device."""
        # One by one: a loader's images are pinned, a stack of them is not, and would be waited for.
        images = [record["image"].to(self.device, non_blocking=True) for record in batch]
        return (torch.stack(images).float() - self.pixel_mean) / self.pixel_std

    def denormalize(self, image: Tensor) -> np.ndarray:
        """A normalised image (3, H, W) as an (H, W, 3) uint8 RGB picture."""
        pixels = (image * self.pixel_std + self.pixel_mean).clamp(0, 255).byte()
        return pixels.permute(1, 2, 0).cpu().numpy()


def _by_size(images: Sequence[Tensor]) -> list[list[int]]:
    """Indices of images (3, H, W), or of batches of them, that have one size."""
    found: dict[torch.Size, list[int]] = {}
    for index, each in enumerate(images):
        found.setdefault(each.shape[-3:], []).append(index)
    return list(found.values())


def _resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(C, h, w) -> (C, *size), bilinear."""
    if logits.shape[-2:] == size:
        return logits
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]
