"""Faults to plant in a trainer: picklable, and called with it before it trains."""

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from detectron2.utils import comm

import mpcl.utils.atomic_write


def at_iteration(trainer, iteration: int, action) -> None:
    """Calls ``action`` when the step of ``iteration`` begins."""
    run_step = trainer.run_step

    def step():
        if trainer.iter == iteration:
            action()
        run_step()

    trainer.run_step = step


@dataclass
class Signal:
    """This rank is sent a signal in an iteration."""

    number: signal.Signals
    iteration: int
    rank: int = 0

    def __call__(self, trainer) -> None:
        if comm.get_rank() == self.rank:
            at_iteration(trainer, self.iteration, lambda: os.kill(os.getpid(), self.number))


@dataclass
class Fail:
    """This rank meets an error in an iteration that is no user's mistake."""

    iteration: int
    rank: int = 0

    def __call__(self, trainer) -> None:
        def fail() -> None:
            raise RuntimeError("planted")

        if comm.get_rank() == self.rank:
            at_iteration(trainer, self.iteration, fail)


@dataclass
class WriteDown:
    """Each rank writes down its process and its loader's workers when an iteration begins, before
    another fault of it."""

    folder: Path
    iteration: int
    fault: Callable | None = None

    def __call__(self, trainer) -> None:
        def write() -> None:
            pid = os.getpid()
            workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            Path(self.folder, f"rank{comm.get_rank()}.txt").write_text(
                " ".join([str(pid), *workers])
            )

        if self.fault is not None:
            self.fault(trainer)
        at_iteration(trainer, self.iteration, write)  # planted later: it comes first


@dataclass
class Stop:
    """SIGTERM to rank 0 in each of some iterations; a run resumed after one meets the next."""

    iterations: tuple[int, ...]

    def __call__(self, trainer) -> None:
        coming = [i for i in self.iterations if i >= trainer.start_iter]
        if coming:
            Signal(signal.SIGTERM, coming[0])(trainer)


@dataclass
class Ready:
    """Touches a file when training has made some iterations."""

    file: Path
    iterations: int = 0

    def __call__(self, trainer) -> None:
        at_iteration(trainer, trainer.start_iter + self.iterations, self.file.touch)


@dataclass
class SlowEvaluation:
    """Touches a file when an evaluation has an image, and takes a second for each."""

    file: Path

    def __call__(self, trainer) -> None:
        build = trainer.build_evaluator

        def slow_evaluator(cfg, dataset_name):
            evaluator = build(cfg, dataset_name)
            process = evaluator.process

            def slowly(inputs, outputs) -> None:
                self.file.touch()
                time.sleep(1)
                process(inputs, outputs)

            evaluator.process = slowly
            return evaluator

        trainer.build_evaluator = slow_evaluator


STAGES = ("write", "fsync", "replace", "fsync folder", "fsync pointer", "replace pointer", "after")


@dataclass
class KillWhileSaving:
    """SIGKILL at a stage of the first checkpoint from here."""

    stage: str

    def __call__(self, trainer) -> None:
        stages, save = {}, trainer.checkpointer.save

        def watched_save(*args, **kwargs):
            # The calls of atomic_write: for the checkpoint and its folder, then for the pointer.
            stages["fsync"] = iter(("fsync", "fsync folder", "fsync pointer", "after"))
            stages["replace"] = iter(("replace", "replace pointer"))
            save(*args, **kwargs)

        def reached(stage: str) -> None:
            if stage == self.stage:
                os.kill(os.getpid(), signal.SIGKILL)

        class WatchedOS:
            """``os`` as atomic_write sees it."""

            def __getattr__(self, name):
                if name in stages:
                    reached(next(stages[name]))
                return getattr(os, name)

        def torn(content, file):
            torch_save(content, file)
            file.flush()
            os.ftruncate(file.fileno(), file.tell() * 2 // 3)
            reached("write")

        torch_save = torch.save
        trainer.checkpointer.save = watched_save
        mpcl.utils.atomic_write.os = WatchedOS()
        if self.stage == "write":
            torch.save = torn


def random_moments(seed: int, others: int) -> list[tuple[str, int, float]]:
    """(stage of saving or "any", iterations, seconds after their end) in a random order: each
    stage, and others."""
    draw = random.Random(seed)
    moments = [(stage, 0, 0.0) for stage in STAGES]
    moments += [("any", draw.randrange(3), draw.uniform(0, 0.1)) for _ in range(others)]
    draw.shuffle(moments)
    return moments


def die(rank: int) -> None:
    """``main`` of a job in which this rank is killed while the others wait for it."""
    if comm.get_rank() == rank:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()
