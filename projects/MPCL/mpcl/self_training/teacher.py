"""The mean teacher: an exponential moving average (EMA) of the student; it labels the target."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..utils.state_dict import faults

STATISTICS = ("student", "target")


class EMATeacher(nn.Module):
    r"""Averaged copy of a student network, without some of its sub-modules and without gradients.

    After the student's update of iteration t = 0, 1, ...

    .. math::
        \phi \leftarrow \alpha_t \phi + (1 - \alpha_t) \theta, \qquad
        \alpha_t = \min(1 - 1/(t + 2), \alpha)

    for parameters and floating-point buffers; integer buffers are copied. The rising momentum keeps
    the start, which the student leaves quickly, out of the average.

    Modes. ``train()`` switches *only batch norm* to training mode: pseudo-labels are normalised by
    the statistics of the target batch, and dropout and stochastic depth stay off. ``eval()``
    normalises by running statistics, of which there are two kinds. ``"student"``: the student's,
    averaged by the same EMA; the teacher's own forwards never change them. ``"target"``: the
    teacher's own, of the target images that it has labelled. Switch modes on this object rather
    than on ``.model``, whose own ``train()`` would turn dropout on.

    Source: Tarvainen and Valpola, arXiv:1703.01780; settings of DAFormer, arXiv:2111.14887. Differs
    from DAFormer in the buffers: there the teacher collects running statistics of its own, as with
    ``"target"``, but is never evaluated.

    Args:
        student: the network to copy; not changed. Not a DistributedDataParallel wrapper, but the
            module inside.
        momentum: alpha in [0, 1), the weight kept of the old value once the warm-up is over.
        statistics: of batch norm in evaluation, ``"student"`` or ``"target"``; see above.
        without: names of attributes of ``student``, sub-modules to leave out. They are never
            copied; in the teacher the attribute is None.
    Attributes:
        model: the averaged copy.
    Raises: ValueError: ``momentum`` is outside [0, 1), or ``statistics`` is unknown.
    """

    def __init__(
        self,
        student: nn.Module,
        *,
        momentum: float = 0.999,
        statistics: str = "student",
        without: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if statistics not in STATISTICS:
            raise ValueError(f"statistics must be one of {STATISTICS}, got {statistics!r}")
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.momentum = momentum
        self.statistics = statistics
        self._left_out = tuple(f"{name}." for name in without)
        # deepcopy takes what it finds in its memo for the copy of an object: left-out modules are
        # "copied" to None.
        left_out = {id(getattr(student, name)): None for name in without}
        self.model: nn.Module = copy.deepcopy(student, left_out)
        self.model.requires_grad_(False)
        # Not those that the student keeps in evaluation mode.
        self._batch_norms = [
            module
            for module in self.model.modules()
            if isinstance(module, _BatchNorm) and module.training
        ]
        for module in self._batch_norms:
            if statistics == "student":
                # In training mode these layers would mix batch statistics of unlabelled target
                # images into running statistics that update_() takes from the student. torch's
                # layers, and ours, leave them alone when they do not track; detectron2's
                # NaiveSyncBatchNorm does not look at that flag, but scales its step by momentum.
                module.track_running_stats = False
                module.momentum = 0.0
        # A tuple, not a module attribute: the student must not become a sub-module of its teacher.
        self._paired: tuple[nn.Module, list[tuple[nn.Module, nn.Module, str]]] | None = None
        self.train()

    @classmethod
    def from_config(cls, cfg: Any, student: Any) -> "EMATeacher":
        """A copy of the student without its prototype head, on the same device."""
        return cls(
            student,
            momentum=cfg.SELF_TRAINING.TEACHER_MOMENTUM,
            statistics=cfg.SELF_TRAINING.TEACHER_STATISTICS,
            without=["prototype_head"],  # None of a student without prototypes
        )

    @torch.no_grad()
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the averaged model with the same arguments. No gradients."""
        return self.model(*args, **kwargs)

    def train(self, mode: bool = True) -> "EMATeacher":
        """Sets batch norm to training (True) or evaluation mode; everything else evaluates."""
        super().train(False)
        self.training = mode
        for module in self._batch_norms:
            module.train(mode)
        return self

    def momentum_at(self, iteration: int) -> float:
        """Momentum of the update after iteration 0, 1, 2, ...: 1/2, 2/3, 3/4, ... up to alpha.

        Raises: ValueError: ``iteration`` is negative.
        """
        if iteration < 0:
            raise ValueError(f"iteration must not be negative, got {iteration}")
        return min(1.0 - 1.0 / (iteration + 2), self.momentum)

    @torch.no_grad()
    def copy_(self, student: nn.Module) -> None:
        """Makes parameters and buffers equal to the student's.

        Raises: ValueError: the student is not built like the one that was copied.
        """
        for mine, theirs in self._pairs(student):
            mine.copy_(theirs)

    @torch.no_grad()
    def update_(self, student: nn.Module, iteration: int) -> None:
        """Averages the student in, after the optimiser step of ``iteration`` (counted from 0).

        Raises: ValueError: the student is not built like the one that was copied, or ``iteration``
            is negative.
        """
        averaged, current = [], []
        momentum = self.momentum_at(iteration)
        for mine, theirs in self._pairs(student, own_statistics=self.statistics == "target"):
            if mine.is_floating_point():
                averaged.append(mine)
                current.append(theirs)
            else:
                mine.copy_(theirs)
        torch._foreach_lerp_(averaged, current, 1.0 - momentum)

    def _pairs(
        self, student: nn.Module, own_statistics: bool = False
    ) -> list[tuple[Tensor, Tensor]]:
        """(teacher tensor, student tensor) of every parameter and buffer; with ``own_statistics``
        without the buffers of batch norm.

        Names are matched once for a student. The owners of the tensors are remembered rather than
        the tensors, as modules may rebind their buffers (``Module.to`` does).
        """
        if self._paired is None or self._paired[0] is not student:
            self._paired = (student, self._match(student))
        return [
            (getattr(mine, key), getattr(theirs, key))
            for mine, theirs, key in self._paired[1]
            if not (own_statistics and isinstance(mine, _BatchNorm) and key in mine._buffers)
        ]

    def _match(self, student: nn.Module) -> list[tuple[nn.Module, nn.Module, str]]:
        mine, theirs = _tensors(self.model), _tensors(student)
        theirs = {name: t for name, t in theirs.items() if not name.startswith(self._left_out)}
        if found := faults(theirs, mine):
            raise ValueError(
                f"student must be built like the one that was copied, and not be wrapped: {found}"
            )
        places = [name.rpartition(".") for name in mine]
        return [
            (self.model.get_submodule(path), student.get_submodule(path), key)
            for path, _, key in places
        ]


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, buffers that are not saved among them."""
    return dict(network.named_parameters()) | dict(network.named_buffers())
