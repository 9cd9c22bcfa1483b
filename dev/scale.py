#!/usr/bin/env python
"""Computes what a training step of a config costs on several GPUs: arithmetic, messages, images.

  python dev/scale.py --config-file projects/MPCL/configs/mic_gauss.yaml --gpus 1
  python dev/scale.py --config-file CONFIG --gpus 8 SOLVER.IMS_PER_BATCH 16

Nothing is trained: shapes alone run through the networks, on PyTorch's meta device. docs/SCALE.md
has the formulas.
"""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple
from unittest import mock

import torch
from benchmarks.step import FLOPS
from detectron2.modeling import build_backbone, build_model
from tabulate import tabulate
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mpcl.config import get_cfg_from
from mpcl.modeling.prototype_head import PrototypeHead
from mpcl.utils.cli import add_debug_option, command_line

FLOAT, HALF = 4, 2  # bytes


class Cost(NamedTuple):
    name: str
    value: float
    unit: str


class _Norms:
    """Counts the batch norms that a network's forwards pass, and their channels."""

    def __init__(self, network: nn.Module) -> None:
        self.passed = self.channels = 0
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.register_forward_hook(self._add)

    def _add(self, module, *_) -> None:
        self.passed += 1
        self.channels += module.num_features

    def take(self) -> tuple[int, int]:
        """Both counts since the last call."""
        taken = self.passed, self.channels
        self.passed = self.channels = 0
        return taken


@contextmanager
def _counted(costs: dict[str, float], name: str) -> Iterator[None]:
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        yield
    costs[name] = costs.get(name, 0) + counter.get_total_flops()


class StepCosts:
    """Of one step of one of ``gpus`` ranks, with its part of the batch.

    Attributes:
        parameters: that are trained.
        flops: by part of the step.
        messages: bytes that one rank sends a step, by purpose.
        num_messages: how many there are, besides those of the gradients.
    """

    def __init__(self, cfg, gpus: int) -> None:
        self.gpus, self.images = gpus, cfg.SOLVER.IMS_PER_BATCH // gpus
        if not self.images or cfg.SOLVER.IMS_PER_BATCH % gpus:
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; expected a multiple of the "
                f"{gpus} GPUs"
            )
        self.cfg = cfg
        self.flops: dict[str, float] = {}
        self.pixels: list[int] = []  # of each embedded grid of an image
        with torch.device("meta"):
            self.student, encoder = build_model(cfg).train(), build_backbone(cfg).eval()
        # Autocast, which changes no shape, does not know this device.
        with mock.patch("torch.autocast", lambda *args, **options: nullcontext()):
            self._count(encoder)

    def _count(self, encoder: nn.Module) -> None:
        cfg = self.cfg
        images = torch.empty(self.images, 3, *cfg.INPUT.CROP.SIZE, device="meta")
        trained = [p for p in self.student.parameters() if p.requires_grad]
        self.parameters = sum(p.numel() for p in trained)
        norms = _Norms(self.student)
        self._count_student(images)
        with_backward = norms.take()
        if cfg.SELF_TRAINING.ENABLED:
            with torch.no_grad():
                with _counted(self.flops, "teacher, forward"):
                    self.student.score(images)
                if cfg.SELF_TRAINING.FEATURE_DISTANCE.WEIGHT > 0:
                    with _counted(self.flops, "ImageNet encoder, forward"):
                        encoder(self.student.encoder_input(images))
        self.messages, self.num_messages = self._messages(with_backward, norms.take())

    def _count_student(self, images: torch.Tensor) -> None:
        training = self.cfg.SELF_TRAINING
        views = {"source": images}
        if training.ENABLED:
            views["mixed"] = images
        if training.MASKED.WEIGHT > 0:
            pair = training.MASKED.IMAGES == "pair"
            views["masked"] = images[:1].expand(2, -1, -1, -1) if pair else images
        for view, seen in views.items():
            with _counted(self.flops, f"student on {view}, forward and backward"):
                outputs = self.student({view: seen})[view]
                results = [outputs.logits, outputs.embeddings]
                if outputs.detail is not None:
                    results += [outputs.detail.logits, outputs.detail.embeddings]
                if view == "masked":  # has no prototype losses
                    results = results[::2]
                sum(r.sum() for r in results if r is not None).backward()
            if view == "source":
                self.pixels = [r[0, 0].numel() for r in results[1::2] if r is not None]
            if view != "masked" and self.student.prototype_head is not None:
                self._count_prototypes(results[1::2])

    def _count_prototypes(self, embeddings: list[torch.Tensor]) -> None:
        prototypes = self.student.prototype_head.prototypes
        with _counted(self.flops, "prototype losses, forward and backward"):
            for grid in embeddings:
                points = grid.detach().permute(0, 2, 3, 1).flatten(0, 2).requires_grad_()
                prototypes.similarity(points).sum().backward()

    def _messages(
        self, student: tuple[int, int], teacher: tuple[int, int]
    ) -> tuple[dict[str, float], int]:
        """Bytes by purpose, and the number of messages besides the gradients'.

        Args:
            student, teacher: batch norms that their forwards pass, and the channels of these.
        """
        if self.gpus == 1:
            return {}, 0
        ring = 2 * (self.gpus - 1) / self.gpus  # an all-reduce sends so many times a tensor
        gather = self.gpus - 1  # an all-gather what this rank brings, to the next in the ring
        # Mean and square of each channel are gathered; their gradients are reduced.
        forward, backward = 2 * (student[1] + teacher[1]), 2 * student[1]
        sent = {"gradients": ring * FLOAT * self.parameters}
        sent["batch norm"] = FLOAT * (gather * forward + ring * backward)
        number = 2 * student[0] + teacher[0]
        head: PrototypeHead | None = self.student.prototype_head
        if head is None:
            return sent, number
        proto, scales = self.cfg.PROTOTYPES, len(head.banks)
        classes, count, dim = head.prototypes.mean.shape
        values = head.prototypes._highest_moment * dim + 1
        sent["prototype sums"] = ring * FLOAT * classes * count * values
        # A column of each class's pixels, then a table a sweep and one for the log.
        columns = 1 + (proto.SINKHORN.SWEEPS + 1) * count
        sent["Sinkhorn tables"] = ring * FLOAT * classes * columns * scales
        images = 2 * self.images  # source and mixed
        samples = sum(min(proto.BANK.SAMPLES_PER_IMAGE, images * n) for n in self.pixels)
        sent["feature bank"] = gather * HALF * images * classes * samples * dim
        return sent, number + 1 + scales * (proto.SINKHORN.SWEEPS + 2 + 1)

    def rows(self) -> list[Cost]:
        total, sent = sum(self.flops.values()), sum(self.messages.values())
        return [
            Cost("trained parameters", self.parameters / 1e6, "million"),
            *(Cost(name, value / 1e9, "GFLOP") for name, value in self.flops.items()),
            Cost("arithmetic of a step", total / 1e9, "GFLOP"),
            *(Cost(f"sent: {name}", value / 1e6, "MB") for name, value in self.messages.items()),
            Cost("sent in a step", sent / 1e6, "MB"),
            Cost("sent besides gradients", self.num_messages, "messages"),
            Cost("loaded in a step", self.images * (1 + self.cfg.SELF_TRAINING.ENABLED), "images"),
        ]


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--gpus", type=int, default=8, help="of all machines; 8 by default")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="of the config")
    add_debug_option(parser)
    return parser.parse_args(argv)


@command_line
def main(argv=None) -> None:
    args = parse_args(argv)
    if args.gpus < 1:
        raise ValueError(f"--gpus is {args.gpus}, expected at least 1")
    cfg = get_cfg_from(args.config_file, [*args.opts, "MODEL.DEVICE", "meta"])
    costs = StepCosts(cfg, args.gpus)
    print(f"Each of {args.gpus} GPUs, a step of {costs.images} images of each domain:")
    print(tabulate(costs.rows(), headers=["what", "value", "unit"], floatfmt=",.4g"))


if __name__ == "__main__":
    main()
