"""The training step, to be read as the algorithm: :meth:`AdaptationTrainer.run_step`."""

import logging
import math
import resource
import time
import weakref
from collections import OrderedDict
from contextlib import nullcontext

import torch
from detectron2.engine import DefaultTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import Tensor, nn

from ..data.paired_loader import build_paired_loader, build_test_loader
from ..evaluation import build_evaluator
from ..modeling.weights import WeightsCheckpointer
from ..utils.seeding import fold_seed
from ..views import View
from .bad_file_report import BadFileReport
from .build import build_adaptation_hook, build_criterion, build_teacher
from .evaluate import evaluate_models
from .gradient_share import GradientShare
from .hooks import AdaptationHookBase
from .metrics import DeviceMetrics
from .solver import build_lr_scheduler, build_optimizer
from .step import AdaptationStep
from .visualization import TrainingPictures

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
        self.teacher = build_teacher(cfg, self.student) if cfg.SELF_TRAINING.ENABLED else None
        self.criterion = build_criterion(cfg, self.student)
        self.metrics = DeviceMetrics()
        self.gradient_share = GradientShare(cfg.PROTOTYPES.GRADIENT_SHARE_PERIOD)
        self.amp_dtype = getattr(torch, cfg.SOLVER.AMP.PRECISION)
        self.grad_scaler = torch.amp.GradScaler(
            cfg.MODEL.DEVICE,
            enabled=cfg.SOLVER.AMP.ENABLED and self.amp_dtype == torch.float16,
        )
        self.checkpointer = WeightsCheckpointer(
            self.student, cfg.OUTPUT_DIR, trainer=weakref.proxy(self)
        )
        if self.teacher is not None:
            self.checkpointer.add_checkpointable("teacher", self.teacher.model)
        self.register_hooks(self.build_hooks())

    # ---- one iteration

    def run_step(self) -> None:
        """One iteration of Algorithm 1."""
        seed_all_rng(fold_seed(self.cfg.SEED, comm.get_rank(), self.iter))
        step = self.next_step()
        self.before_forward(step)  # teacher: pseudo-labels; class-mix; masked images
        self.optimizer.zero_grad()
        masked_losses = self.backward_masked(step)
        with self.autocast():
            step.outputs = self.model(step.images)  # student, one view after the other
        self.after_forward(step)  # Sinkhorn clustering; prototype update
        losses = self.criterion(step)
        self.gradient_share(losses, step, self.metrics)
        self.grad_scaler.scale(sum(losses.values())).backward()
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()
        self.write_metrics(masked_losses | losses)
        self.last_step = step  # for the pictures; replaced in the next iteration

    def next_step(self) -> AdaptationStep:
        """The next paired batch on the device."""
        start = time.perf_counter()
        batch = next(self._trainer._data_loader_iter)
        self.storage.put_scalar("data_time", time.perf_counter() - start)
        source = batch["source"]
        label = torch.stack([record["sem_seg"] for record in source])
        label = label.to(self.student.device, non_blocking=True)
        trusted = label != self.cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
        view = View(self.student.normalize(source), label, weight=None, trusted=trusted)
        if "target" not in batch:
            return AdaptationStep(self.iter, view)
        target = self.student.normalize(batch["target"])
        valid = None
        if "valid" in batch["target"][0]:
            valid = torch.stack([record["valid"] for record in batch["target"]])
            valid = valid.to(self.student.device, non_blocking=True)
        return AdaptationStep(self.iter, view, target, valid)

    def backward_masked(self, step: AdaptationStep) -> dict[str, Tensor]:
        """Forward and backward of the masked view, alone and first: its graph needs no other view,
        and is gone before theirs takes the memory. The gradients add up to the same."""
        if step.masked is None:
            return {}
        # Between processes gradients are summed once, in the backward of the other views.
        with self.model.no_sync() if self.model is not self.student else nullcontext():
            with self.autocast():
                outputs = self.model({"masked": step.masked.images})["masked"]
            losses = self.criterion.of_masked(outputs, step.masked)
            self.grad_scaler.scale(sum(losses.values())).backward()
        return {name: loss.detach() for name, loss in losses.items()}

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
            FloatingPointError: a mean is not finite; the message names the loss.
        """
        self.metrics.add(losses)
        if (self.iter + 1) % self.cfg.LOG_PERIOD and self.iter + 1 < self.max_iter:
            return
        values = self.metrics.read()
        broken = [
            name for name, value in values.items() if "loss" in name and not math.isfinite(value)
        ]
        if broken:
            raise FloatingPointError(
                f"{', '.join(broken)} became infinite or NaN between iterations "
                f"{self.iter - self.cfg.LOG_PERIOD + 1} and {self.iter}: {values}"
            )
        values["total_loss"] = sum(value for name, value in values.items() if name in losses)
        if self.cfg.MODEL.DEVICE == "cpu":
            # On a GPU detectron2's printer shows the device's peak memory; here the process's.
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            values["[metric] max_mem_MiB"] = peak
        self.storage.put_scalars(smoothing_hint=False, **values)

    def _adaptation_hooks(self) -> list[AdaptationHookBase]:
        return [hook for hook in self._hooks if isinstance(hook, AdaptationHookBase)]

    # ---- construction

    @classmethod
    def build_model(cls, cfg) -> nn.Module:
        model = build_model(cfg)
        if comm.get_world_size() > 1 and cfg.MODEL.DEVICE != "cpu":
            # With plain batch norm the ranks would keep unequal statistics, and only rank 0's would
            # be saved.
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model

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
            # Before the checkpointer: the teacher is saved with the iteration's update in it.
            adaptation,
            hooks.PeriodicCheckpointer(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD)
            if main
            else None,
            BadFileReport(self.data_loader.bad_files),
            hooks.EvalHook(cfg.TEST.EVAL_PERIOD, self.evaluate),
            TrainingPictures(cfg) if main and cfg.VIS_PERIOD else None,
            hooks.PeriodicWriter(self.build_writers(), period=cfg.LOG_PERIOD) if main else None,
        ]

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
        state = super().state_dict()
        state["grad_scaler"] = self.grad_scaler.state_dict()
        state["run"] = self._run_identity()
        return state

    def load_state_dict(self, state_dict: dict) -> None:
        """Raises ValueError where the random streams of the resumed run would differ from the saved
        one's."""
        saved, current = state_dict["run"], self._run_identity()
        changed = [
            f"{key} was {saved[key]} and is {current[key]}"
            for key in current
            if saved[key] != current[key]
        ]
        if changed:
            raise ValueError(
                f"Cannot resume: {'; '.join(changed)}. The run would draw other images than the "
                "one it goes on from. Restore these values, or start a new run from the checkpoint "
                "with MODEL.WEIGHTS."
            )
        super().load_state_dict(state_dict)
        self.grad_scaler.load_state_dict(state_dict["grad_scaler"])

    def _run_identity(self) -> dict[str, int]:
        return {
            "SEED": self.cfg.SEED,
            "number of processes": comm.get_world_size(),
            "SOLVER.IMS_PER_BATCH": self.cfg.SOLVER.IMS_PER_BATCH,
        }


def ddp_options(cfg) -> dict:
    """Arguments of DistributedDataParallel; the one place that differs between GPUs and CPU
    processes."""
    options: dict = {"broadcast_buffers": False}
    if cfg.MODEL.DEVICE == "cpu":
        options["device_ids"] = None
    return options
