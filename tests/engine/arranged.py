"""A training without chance, recorded: what several ranks do can then be compared with one process.

Each rank draws its own random numbers, so one process with the whole batch draws others. Here no
draw matters: classes to paste, hidden blocks and detail crop are fixed by image, samples are the
first of each class instead of random ones. (Dropout, stochastic depth, jitter and blur are switched
off, and prototypes start at random by the run's seed, which all ranks share, by config.)
"""

from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist
from detectron2.utils import comm

import mpcl.prototypes.bank
from mpcl.engine import adaptation
from mpcl.modeling import hrda
from mpcl.prototypes.numerics import sample_per_group
from mpcl.self_training import masking
from mpcl.structures import Box

CLASSES = 4
ABSENT = 2  # the class of ``uneven``
NO_CHANCE = (
    *("MODEL.SEM_SEG_HEAD.DROPOUT", 0.0, "MODEL.BACKBONE.DROP_PATH", 0.0),
    *("SELF_TRAINING.JITTER_PROBABILITY", 0.0, "SELF_TRAINING.BLUR_PROBABILITY", 0.0),
    *("SELF_TRAINING.MASKED.IMAGES", "target"),  # pair: the first image of each *rank*
    *("PROTOTYPES.INIT.METHOD", "random", "PROTOTYPES.INIT.ITER", 0),
    # The bank's half of the pool is drawn by each rank; the bank itself is compared.
    *("PROTOTYPES.CLUSTER_POOL", "batch", "PROTOTYPES.GRADIENT_SHARE_PERIOD", 0),
    *("PROTOTYPES.BANK.SIZE", 4000, "PROTOTYPES.BANK.SAMPLES_PER_IMAGE", 256),  # room for all
)


def first_per_group(group, num_groups, count):
    """`sample_per_group`, but the first members of each group instead of random ones."""

    def ascending(size, device=None):
        return torch.arange(size, dtype=torch.float64, device=device) / max(1, size)

    with mock.patch("torch.rand", ascending):
        return sample_per_group(group, num_groups, count)


def hide_every_second_block(images, *, block_size, ratio):
    rows, columns = (torch.arange(side) // block_size % 2 for side in images.shape[-2:])
    return images * (rows[:, None] == columns)


@contextmanager
def sent_messages():
    """Collects (type, bytes) of what this process brings to sums and gathers; DDP's are not
    seen."""
    messages = []

    def watched(function, which):
        def call(*args, **options):
            tensor = args[which]
            messages.append((tensor.dtype, tensor.numel() * tensor.element_size()))
            return function(*args, **options)

        return call

    with (
        mock.patch.object(dist, "all_reduce", watched(dist.all_reduce, 0)),
        mock.patch.object(dist, "all_gather", watched(dist.all_gather, 1)),
    ):
        yield messages


@dataclass
class Arranged:
    """Makes a trainer's draws fixed, and writes what each iteration and the end show.

    Attributes:
        file: to write to, as ``<file>_<rank>``.
        uneven: the class ``ABSENT`` occurs in the second image of each domain alone, whose
            pseudo-labels are never confident.
    """

    file: Path
    uneven: bool = False

    def __call__(self, trainer) -> None:
        adaptation.sample_class_mask = lambda label, classes: (label % 2 == 1) & (label < CLASSES)
        masking.hide_blocks = hide_every_second_block
        hrda.sample_detail_box = lambda size, detail: Box(16, 8, 16 + detail[0], 8 + detail[1])
        mpcl.prototypes.bank.sample_per_group = first_per_group
        for group in trainer.optimizer.param_groups:
            # Adam's step is a gradient's sign where it is much larger than eps: round-off in a
            # gradient that is zero but for it would become a whole step. So, it is linear.
            group["eps"] = 1.0
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():  # away from the encoder that features are compared with
            for parameter in trainer.student.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        if self.uneven:
            self._make_uneven(trainer)
        self._record(trainer)

    def _make_uneven(self, trainer) -> None:
        next_step, teacher = trainer.next_step, trainer.teacher.model
        score = teacher.score

        def of_batch(both):
            """This rank's part of what is meant for the two images."""
            parts = torch.tensor(both).chunk(comm.get_world_size())
            return parts[comm.get_rank()].view(-1, 1, 1)

        def uneven_step():
            step = next_step()
            absent = (step.source.label == ABSENT) & of_batch([True, False])
            step.source.label[absent] = 255
            step.source.trusted[absent] = False
            return step

        def uneven_score(images):
            logits = score(images) * of_batch([20.0, 0.01]).unsqueeze(1)
            logits[:, ABSENT] -= of_batch([100.0, 0.0])
            return logits

        trainer.next_step, teacher.score = uneven_step, uneven_score

    def _record(self, trainer) -> None:
        run_step, steps = trainer.run_step, []
        backward_masked, places, moved = trainer.backward_masked, [], []

        def gradients() -> set[int]:
            """Where in the memory they are."""
            found = (parameter.grad for parameter in trainer.student.parameters())
            return {g.untyped_storage().data_ptr() for g in found if g is not None}

        def backward_masked_watched(step):
            losses = backward_masked(step)
            places.append(gradients())
            return losses

        trainer.backward_masked = backward_masked_watched

        def recorded():
            with sent_messages() as messages:
                run_step()
            moved.append(places[-1] != gradients())
            step = trainer.last_step
            seen = {name: getattr(step.target, name) for name in ("label", "weight", "trusted")}
            seen["present"] = (step.source.label == ABSENT).any()
            for scale, views in step.pixels.items():
                seen |= {f"assignment.{scale}.{name}": p.cluster for name, p in views.items()}
            steps.append(seen)
            if trainer.iter + 1 < trainer.max_iter:
                return
            head = trainer.student.prototype_head
            torch.save(
                {
                    "steps": steps,
                    "messages": messages,
                    "gradients moved after the masked view": moved,
                    "gradients": {n: p.grad for n, p in trainer.student.named_parameters()},
                    "student": dict(trainer.student.named_parameters()),
                    "statistics": {
                        n: b for n, b in trainer.student.named_buffers() if "running_" in n
                    },
                    "prototypes": dict(head.prototypes.named_buffers()),
                    "banks": {
                        scale: (bank.features.sort(1).values, bank.fill)
                        for scale, bank in head.banks.items()
                    },
                },
                f"{self.file}_{comm.get_rank()}",
            )

        trainer.run_step = recorded
