"""What stands between a non-finite loss or gradient and everything that training keeps."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..structures import Step
from ..utils.distributed import sum_over_ranks

logger = logging.getLogger(__name__)

GRADIENT, STATISTICS = "gradient", "statistics"
"""Stand beside the names of the losses where the gradient was not finite, or what the forward left
in the statistics of batch norm."""

EXIT_DIVERGED = 65
"""Exit status of a run that :class:`Diverged` (EX_DATAERR: another try from here ends the same)."""


class Diverged(FloatingPointError):
    """Too many steps in a row had a loss or gradient that was not finite."""


def running_statistics(network: nn.Module) -> list[Tensor]:
    """Means and variances of its batch norm."""
    return [
        buffer
        for module in network.modules()
        if isinstance(module, _BatchNorm)
        for buffer in module.buffers(recurse=False)
        if buffer.is_floating_point()
    ]


class StepGuard:
    """Undoes and counts steps whose losses, gradients or statistics are not finite, without waiting
    for the device.

    A skipped step leaves parameters, optimiser and the statistics of batch norm as they were;
    prototypes and banks take no embedding that is not finite; the teacher averages the unchanged
    student once more. All ranks decide alike. What was skipped is known when :meth:`settle` reads
    the flags: its ``iteration``, its ``causes`` (names of the losses that were not finite on some
    rank; ``gradient``, ``statistics``) and its ``files``, the images of its batch on this rank.

    Args:
        networks: student and teacher, whose statistics a forward may change.
        optimizer: of the student.
        max_skipped: so many skipped steps in a row end the run.
        report: file that then lists them.
        last_checkpoint: path of the newest checkpoint, for that report.
    """

    def __init__(
        self,
        networks: Sequence[nn.Module],
        optimizer: torch.optim.Optimizer,
        *,
        max_skipped: int,
        report: Path,
        last_checkpoint: Callable[[], str],
    ) -> None:
        self.statistics = [each for network in networks for each in running_statistics(network)]
        self.optimizer = optimizer
        self.max_skipped = max_skipped
        self.report = report
        self.last_checkpoint = last_checkpoint
        self.total = 0  # skipped steps of the whole run
        self.in_a_row: list[dict[str, Any]] = []  # the skipped steps that end in the last one
        self._pending: list[tuple[dict[str, Any], Tensor]] = []  # steps, and flags of their causes
        self._before: list[Tensor] = []

    @torch.no_grad()
    def remember(self) -> None:
        """Keeps what the coming step may change in place."""
        self._before = [buffer.clone() for buffer in self.statistics]

    @torch.no_grad()
    def check(self, step: Step, losses: Mapping[str, Tensor]) -> Tensor:
        """After the backward: takes the step's changes back where a loss or gradient is not finite.

        Returns: scalar, 1 = skip, 0 = go on; what optimisers call ``found_inf``. Equal on all
            ranks, which must all call it.
        """
        gradients = [
            parameter.grad
            for group in self.optimizer.param_groups
            for parameter in group["params"]
            if parameter.grad is not None
        ]
        # Squared, as the optimiser's second moment will be: that must not overflow either.
        norm = torch.stack(torch._foreach_norm(gradients)).float().square().sum()
        values = torch.stack([*(loss.detach().float() for loss in losses.values()), norm])
        broken = torch.cat([~values.isfinite(), self._statistics_broke()])
        broken = sum_over_ranks(broken.float())
        skip = broken.sum() > 0
        for buffer, before in zip(self.statistics, self._before):
            buffer.copy_(torch.where(skip, before, buffer))
        causes, files = [*losses, GRADIENT, STATISTICS], list(step.files)
        record = {"iteration": step.iteration, "causes": causes, "files": files}
        self._pending.append((record, broken))
        return skip.float()

    def _statistics_broke(self) -> Tensor:
        """(1,) bool: a statistic that was finite is no longer, as the teacher's may be although the
        student has seen nothing of it."""
        if not self.statistics:
            parameter = self.optimizer.param_groups[0]["params"][0]
            return torch.zeros(1, dtype=torch.bool, device=parameter.device)
        now, before = (
            torch.stack(torch._foreach_norm(side)) for side in (self.statistics, self._before)
        )
        return (before.isfinite() & ~now.isfinite()).any().view(1)

    def settle(self) -> None:
        """Reads which steps were skipped since the last call, and logs them. Waits for the device.

        Raises: Diverged: ``max_skipped`` of them in a row; they are in the file ``report``. On all
            ranks at once.
        """
        pending, self._pending = self._pending, []
        if not pending:
            return
        flags = torch.cat([broken for _, broken in pending]).cpu()  # one wait for all steps
        of_steps = flags.split([len(broken) for _, broken in pending])
        for (step, _), broken in zip(pending, of_steps):
            causes = [name for name, bad in zip(step["causes"], broken.tolist()) if bad]
            if not causes:
                self.in_a_row = []
                continue
            self.total += 1
            self.in_a_row.append({**step, "causes": causes})
            logger.warning(
                f"Skipped the step of iteration {step['iteration']}: not finite: "
                f"{', '.join(causes)}; images {', '.join(step['files'])}"
            )
            if len(self.in_a_row) >= self.max_skipped:
                raise self._diverged()

    def _diverged(self) -> Diverged:
        checkpoint = self.last_checkpoint()
        ranks = comm.gather(self.in_a_row)
        if comm.is_main_process():
            content = {"last_good_checkpoint": checkpoint, "skipped_by_rank": ranks}
            self.report.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        first, last = self.in_a_row[0], self.in_a_row[-1]
        causes = dict.fromkeys(cause for skipped in self.in_a_row for cause in skipped["causes"])
        return Diverged(
            f"{', '.join(causes)} were infinite or NaN in {len(self.in_a_row)} iterations in a row "
            f"({first['iteration']} to {last['iteration']}; SOLVER.MAX_SKIPPED is "
            f"{self.max_skipped}). The last images were {', '.join(last['files'])}; all are listed "
            f"in {self.report}. "
            f"Nothing of these steps was kept; the last good checkpoint is {checkpoint or 'none'}. "
            "A smaller SOLVER.BASE_LR or SOLVER.CLIP_GRADIENTS may help"
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain containers. Settles first, and so may raise Diverged."""
        self.settle()
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.total, self.in_a_row = state["total"], state["in_a_row"]
