"""The training step, to be read as the algorithm: :meth:`AdaptationTrainer.run_step`."""

import logging
import resource
import time
import weakref
from collections import OrderedDict
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from detectron2.engine import DefaultTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import Tensor, nn

from ..checkpoint.training import TrainingCheckpointer
from ..data.paired_loader import build_paired_loader, build_test_loader
from ..evaluation.evaluator import build_evaluator
from ..modeling.sync_norm import synchronise_batch_norm
from ..self_training.teacher import EMATeacher
from ..structures.step import AdaptationStep
from ..structures.view import View
from ..utils.distributed import world_size
from ..utils.seeding import fold_seed
from .adaptation import AdaptationHookBase
from .bad_file_report import BadFileReport
from .build import (
    build_adaptation_hook,
    build_collapse_alarm,
    build_criterion,
    build_step_guard,
    compile_encoders,
)
from .checkpointing import CheckpointHook
from .evaluate import evaluate_models
from .gradient_share import GradientShare
from .metrics import DeviceMetrics
from .metrics_file import (
    Evaluation,
    MetricsWriter,
    Unwritten,
    put_back,
    start_metrics,
    unwritten_scalars,
)
from .prototype_start import build_prototype_start
from .run_identity import check_same_run, run_identity
from .solver import build_lr_scheduler, build_optimizer
from .training_pictures import TrainingPictures
from .wandb_writer import build_wandb_writers

logger = logging.getLogger(__name__)


class AdaptationTrainer(DefaultTrainer):
    """Trains a student on labelled source and unlabelled target images.

    detectron2's trainer with two more hook phases around the forward, because clustering stands
    between forward and loss. Nothing in :meth:`run_step` waits for the device; metrics are read
    every ``LOG_PERIOD`` iterations.
    """

    def __init__(self, cfg) -> None:
        # DefaultTrainer's own constructor would save with a checkpointer that does not know
        # SegFormer's weights, and build the hooks before the teacher; the rest of it is inherited.
        super(DefaultTrainer, self).__init__()
        self.cfg = cfg
        self.start_iter, self.max_iter = 0, cfg.SOLVER.MAX_ITER
        self.student = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, self.student)
        loader = self.build_train_loader(cfg)
        # Holds `model`, `optimizer` and `data_loader` for DefaultTrainer; the step is ours.
        self._trainer = SimpleTrainer(
            create_ddp_model(self.student, **ddp_options(cfg)), loader, optimizer
        )
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.teacher = (
            EMATeacher.from_config(cfg, self.student) if cfg.SELF_TRAINING.ENABLED else None
        )
        if cfg.MODEL.COMPILE:
            compile_encoders(self.student, *([self.teacher.model] if self.teacher else []))
        self.criterion = build_criterion(cfg, self.student)
        self.metrics = DeviceMetrics()
        self.gradient_share = GradientShare(cfg.PROTOTYPES.GRADIENT_SHARE_PERIOD)
        self.amp_dtype = getattr(torch, cfg.SOLVER.AMP.PRECISION)
        self.grad_scaler = torch.amp.GradScaler(
            cfg.MODEL.DEVICE,
            enabled=cfg.SOLVER.AMP.ENABLED and self.amp_dtype == torch.float16,
        )
        self.checkpointer = TrainingCheckpointer(
            self.student,
            cfg.OUTPUT_DIR,
            keep=cfg.SOLVER.CHECKPOINT_KEEP,
            allow_unmatched=cfg.MODEL.ALLOW_UNMATCHED,
            trainer=weakref.proxy(self),
        )
        if self.teacher is not None:
            self.checkpointer.add_checkpointable("teacher", self.teacher.model)
        self.guard = build_step_guard(
            cfg, self.student, self.teacher, optimizer, self.checkpointer.get_checkpoint_file
        )
        self.collapse_alarm = build_collapse_alarm(cfg)
        self.last_step: AdaptationStep | None = None  # for the pictures
        self._unwritten: Unwritten = {}  # what a resumed run still has to log
        self.register_hooks(self.build_hooks())

    # ---- one iteration

    def run_step(self) -> None:
        """One iteration of Algorithm 1."""
        seed_all_rng(fold_seed(self.cfg.SEED, comm.get_rank(), self.iter))
        self.last_step = None  # and with it the memory of its outputs
        step = self.next_step()
        self.guard.remember()
        self.before_forward(step)  # teacher: pseudo-labels; class-mix; masked images
        self.optimizer.zero_grad()
        parts = step.split(self.cfg.SOLVER.ACCUMULATE)
        by_part = [self.backward(part) for part in parts]
        losses = {name: sum(losses[name] for losses in by_part) for name in by_part[0]}
        self.update_student(step, losses)
        self.write_metrics(losses)
        self.last_step = parts[-1]

    def next_step(self) -> AdaptationStep:
        """The next paired batch on the device."""
        start = time.perf_counter()
        batch = next(self._trainer._data_loader_iter)
        self.storage.put_scalar("data_time", time.perf_counter() - start)
        source = batch["source"]
        label = self.stack_on_device([record["sem_seg"] for record in source])
        trusted = label != self.cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        view = View(self.student.normalize(source), label, weight=None, trusted=trusted)
        files = tuple(record["file_name"] for records in batch.values() for record in records)
        if "target" not in batch:
            return AdaptationStep(self.iter, view, files=files)
        target = self.student.normalize(batch["target"])
        valid = None
        if "valid" in batch["target"][0]:
            valid = self.stack_on_device([record["valid"] for record in batch["target"]])
        return AdaptationStep(self.iter, view, target, valid, files)

    def stack_on_device(self, values: list[Tensor]) -> Tensor:
        # In this order: the loader's tensors are pinned, a stack of them would be waited for.
        return torch.stack([value.to(self.student.device, non_blocking=True) for value in values])

    def backward(self, part: AdaptationStep) -> dict[str, Tensor]:
        """Forward and backward of a part of the batch; of all of it, unless SOLVER.ACCUMULATE asks
        for parts. Returns its share of the losses."""
        masked_losses = self.backward_masked(part)
        with self.gradients_summed(part.is_last):
            with self.autocast():
                part.outputs = self.model(part.images)  # student, one view after the other
            self.after_forward(part)  # Sinkhorn clustering; prototype update
            losses = self.criterion(part)
            if part.is_last:
                self.gradient_share(losses, part, self.metrics)
            losses = self.backward_share(losses)
        if not part.is_last:
            part.outputs, part.pixels = {}, {}  # the next part needs their memory
        return masked_losses | losses

    def backward_masked(self, step: AdaptationStep) -> dict[str, Tensor]:
        """Forward and backward of the masked view, alone and first: its graph needs no other view,
        and is gone before theirs takes the memory. The gradients add up to the same."""
        if step.masked is None:
            return {}
        with self.gradients_summed(False):
            with self.autocast():
                views = {"masked": step.masked.images}
                outputs = self.model(views, embed=False)["masked"]
            return self.backward_share(self.criterion.of_masked(outputs, step.masked))

    def backward_share(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds the gradients of a part's losses, which are means, to those of the whole batch."""
        share = 1 / self.cfg.SOLVER.ACCUMULATE
        self.grad_scaler.scale(sum(losses.values()) * share).backward()
        return {name: loss.detach() * share for name, loss in losses.items()}

    def gradients_summed(self, now: bool) -> AbstractContextManager:
        """Between processes gradients are summed once, in the last backward of the step."""
        if now or self.model is self.student:
            return nullcontext()
        return self.model.no_sync()

    def update_student(self, step: AdaptationStep, losses: dict[str, Tensor]) -> None:
        """The optimiser's step; where a loss or gradient is not finite there is none, and what the
        forward has changed is taken back."""
        self.grad_scaler.unscale_(self.optimizer)
        # GradScaler's own way to tell a fused optimiser, on the device, to leave all as it is.
        self.optimizer.found_inf = self.guard.check(step, losses)
        self.optimizer.step()
        self.grad_scaler.update()

    def before_forward(self, step: AdaptationStep) -> None:
        for hook in self._adaptation_hooks():
            hook.before_forward(step)

    def after_forward(self, step: AdaptationStep) -> None:
        for hook in self._adaptation_hooks():
            hook.after_forward(step)

    def autocast(self) -> torch.autocast:
        """The precision of the teacher's and the student's forward; losses and clustering stay
        float32."""
        return torch.autocast(
            torch.device(self.cfg.MODEL.DEVICE).type,
            self.amp_dtype,
            enabled=self.cfg.SOLVER.AMP.ENABLED,
        )

    def write_metrics(self, losses: dict[str, Tensor]) -> None:
        """Keeps losses on the device; every LOG_PERIOD iterations their means go to the event
        storage.

        Raises:
            Diverged: SOLVER.MAX_SKIPPED steps in a row were skipped.
        """
        self.metrics.add(losses)
        if (self.iter + 1) % self.cfg.LOG_PERIOD and self.iter + 1 < self.max_iter:
            return
        self.guard.settle()
        values = self.metrics.read()
        self.collapse_alarm(self.iter, values)
        if losses.keys() <= values.keys():
            values["total_loss"] = sum(values[name] for name in losses)
        values["skipped_steps"] = self.guard.total
        if self.cfg.MODEL.DEVICE == "cpu":
            # On a GPU detectron2's printer shows the device's peak memory; here the process's.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            values["[metric] max_mem_MiB"] = peak
        else:
            values["gpu/max_mem_MiB"] = torch.cuda.max_memory_allocated() / 2**20
        self.storage.put_scalars(smoothing_hint=False, **values)

    def _adaptation_hooks(self) -> list[AdaptationHookBase]:
        return [hook for hook in self._hooks if isinstance(hook, AdaptationHookBase)]

    # ---- construction

    @classmethod
    def build_model(cls, cfg) -> nn.Module:
        model = build_model(cfg)
        return synchronise_batch_norm(model, cfg.MODEL.DEVICE) if world_size() > 1 else model

    @classmethod
    def build_optimizer(cls, cfg, model):
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg, optimizer):
        return build_lr_scheduler(cfg, optimizer)

    @classmethod
    def build_train_loader(cls, cfg):
        return build_paired_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name):
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name):
        return build_evaluator(cfg, dataset_name)

    def build_writers(self) -> list:
        """Log, metrics.json and TensorBoard; with WANDB.PROJECT also Weights & Biases."""
        return [*build_wandb_writers(self.cfg), *super().build_writers()]

    def build_hooks(self) -> list:
        cfg = self.cfg
        adaptation = (
            build_adaptation_hook(cfg, self.student, self.teacher)
            if self.teacher is not None
            else None
        )
        main = comm.is_main_process()
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            # Before the checkpoint: the teacher is saved with the iteration's update in it.
            adaptation,
            build_prototype_start(cfg, self.student) if main else None,
            BadFileReport(self.data_loader.bad_files),
            # What comes after it is made up for by a run that goes on from the checkpoint.
            CheckpointHook(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD),
            Evaluation(cfg.TEST.EVAL_PERIOD, self.evaluate),
            TrainingPictures(cfg) if main and cfg.VIS_PERIOD else None,
            MetricsWriter(self.build_writers, period=cfg.LOG_PERIOD) if main else None,
        ]

    # ---- begin and end

    def before_train(self) -> None:
        metrics = Path(self.cfg.OUTPUT_DIR) / "metrics.json"
        written = comm.is_main_process() and start_metrics(metrics, self.start_iter)
        super().before_train()
        if self.start_iter and not comm.all_gather(written)[0]:
            self._finish_saved_iteration()

    def _finish_saved_iteration(self) -> None:
        """Evaluation and log line, which a kill or a request to stop came before."""
        self.iter = self.storage.iter = self.start_iter - 1
        put_back(self.storage, self._unwritten)
        saved_by = next(i for i, hook in enumerate(self._hooks) if isinstance(hook, CheckpointHook))
        for hook in self._hooks[saved_by + 1 :]:
            hook.after_step()
        self.iter = self.storage.iter = self.start_iter

    @property
    def finished(self) -> bool:
        """Whether the last iteration is done; for hooks, after training."""
        return self.iter >= self.max_iter

    def after_train(self) -> None:
        self.iter = min(self.iter, self.max_iter)  # one more, if a finished run is resumed
        super().after_train()
        if self._trainer._data_loader_iter_obj is not None:
            self._trainer._data_loader_iter_obj.close()  # ends the workers

    # ---- evaluation

    def evaluate(self) -> OrderedDict:
        """Scores of both networks on DATASETS.TEST, see :func:`evaluate_models`."""
        self._last_eval_results = evaluate_models(self.cfg, self.student, self.teacher)
        return self._last_eval_results

    # ---- state

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume)
        self.data_loader.seek(self.start_iter)

    def state_dict(self) -> dict:
        """Everything that the networks do not hold. All ranks must call it."""
        return super().state_dict() | {
            "grad_scaler": self.grad_scaler.state_dict(),
            "run": run_identity(self.cfg),
            "metrics": self.metrics.state_dict(),
            "guard": self.guard.state_dict(),
            "unwritten": unwritten_scalars(self.storage, self.iter, self.cfg.LOG_PERIOD)
            if hasattr(self, "storage")  # since training has begun
            else {},
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Raises ValueError where the random streams of the resumed run would differ from the saved
        one's."""
        check_same_run(state_dict["run"], self.cfg)
        super().load_state_dict(state_dict)
        if state_dict["grad_scaler"]:  # empty after a run in another precision than float16
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        if "guard" in state_dict:  # not in the checkpoints of earlier versions
            self.metrics.load_state_dict(state_dict["metrics"], self.student.device)
            self.guard.load_state_dict(state_dict["guard"])
            self._unwritten = state_dict["unwritten"]


def ddp_options(cfg) -> dict:
    """Arguments of DistributedDataParallel; the one place that differs between GPUs and CPU
    processes."""
    options: dict = {"broadcast_buffers": False}
    if cfg.MODEL.DEVICE == "cpu":
        options["device_ids"] = None
    return options
