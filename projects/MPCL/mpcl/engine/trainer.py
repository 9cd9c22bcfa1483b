"""The training step, to be read as the algorithm: :meth:`AdaptationTrainer.run_step`."""

import resource
import time
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from detectron2.engine import SimpleTrainer, create_ddp_model, hooks
from detectron2.engine.defaults import default_writers
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling import build_model
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch import Tensor

from ..checkpoint.training import TrainingCheckpointer
from ..data.build import build_paired_loader, build_test_loader
from ..evaluation.evaluator import build_evaluator
from ..losses.criterion import Criterion
from ..losses.gradient_share import gradient_share
from ..modeling.sync_norm import synchronise_batch_norm
from ..self_training.teacher import EMATeacher
from ..structures import Step
from ..utils.determinism import use_deterministic_algorithms
from ..utils.distributed import world_size
from ..utils.seeding import fold_seed
from .adaptation import AdaptationHook
from .alarms import CollapseAlarm
from .checkpointing import CheckpointHook, SelectionHook
from .compilation import compile_blocks_, without_compiling
from .evaluate import EvaluationHook, evaluate_models, headline_key
from .guards import StepGuard, running_statistics
from .metrics import DeviceMetrics, start_metrics
from .run_identity import check_same_run, run_identity
from .solver import build_lr_scheduler, build_optimizer, check_groups, rates_of, set_rates_
from .training_pictures import TrainingPictures
from .wandb_writer import WandbWriter


class AdaptationTrainer(SimpleTrainer):
    """Trains a student on labelled source and unlabelled target images.

    detectron2's trainer and hooks, with a step of our own. Nothing in :meth:`run_step` waits for
    the device, but for metrics (every ``LOG_PERIOD`` iterations), pictures, and prototypes that
    are about to start.
    """

    def __init__(self, cfg) -> None:
        self.cfg = cfg
        if cfg.SOLVER.DETERMINISTIC:
            use_deterministic_algorithms()
        model = build_model(cfg)
        self.student = synchronise_batch_norm(model) if world_size() > 1 else model
        loader = self.build_train_loader(cfg)
        optimizer = build_optimizer(cfg, self.student)
        super().__init__(create_ddp_model(self.student, **ddp_options(cfg)), loader, optimizer)
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.scheduler = build_lr_scheduler(cfg, optimizer)
        self.teacher = self.adaptation = None
        networks = [self.student]
        if cfg.SELF_TRAINING.ENABLED:
            self.teacher = EMATeacher.from_config(cfg, self.student)
            self.adaptation = AdaptationHook.from_config(cfg, self.student, self.teacher)
            networks.append(self.teacher.model)
        self.criterion = Criterion.from_config(cfg, self.student.prototype_head)
        if cfg.MODEL.COMPILE:  # the heads gain nothing
            encoders = [network.backbone for network in networks]
            if self.adaptation is not None and self.adaptation.reference_encoder is not None:
                encoders.append(self.adaptation.reference_encoder)
            for encoder in encoders:
                compile_blocks_(encoder)
        self.amp_dtype = getattr(torch, cfg.SOLVER.AMP.PRECISION)
        self.grad_scaler = torch.amp.GradScaler(
            cfg.MODEL.DEVICE, enabled=cfg.SOLVER.AMP.ENABLED and self.amp_dtype == torch.float16
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
        self.metrics = DeviceMetrics()
        self.statistics = running_statistics(self.student)
        self.guard = StepGuard(
            networks,
            optimizer,
            max_skipped=cfg.SOLVER.MAX_SKIPPED,
            report=Path(cfg.OUTPUT_DIR) / "diverged.json",
            last_checkpoint=self.checkpointer.get_checkpoint_file,
        )
        self.collapse_alarm = CollapseAlarm.from_config(cfg)
        self.last_step: Step | None = None  # for the pictures
        self.register_hooks(self.build_hooks())

    # ---- one iteration

    def run_step(self) -> None:
        """One iteration of Algorithm 1."""
        seed_all_rng(fold_seed(self.cfg.SEED, comm.get_rank(), self.iter))
        self.last_step = None  # and with it the memory of its outputs
        step = self.next_step()  # source View, target View (labels unknown)
        self.guard.remember()
        # Between processes gradients keep their place in DDP's messages: one copy, not two.
        self.optimizer.zero_grad(set_to_none=self.model is self.student)
        if self.adaptation is not None:
            self.adaptation.before_forward(step)  # teacher labels the target; class-mix; masks
        losses = self.backward_masked(step)
        with self.autocast():
            step.outputs = self.model(step.images)  # student
        if self.adaptation is not None:
            self.adaptation.after_forward(step)  # Sinkhorn clustering; prototype update
        of_step = self.criterion(step)
        # Checkpointed blocks are computed again: their batch norm sees the images once more.
        with self.statistics_kept() if self.cfg.MODEL.BACKBONE.CHECKPOINT else nullcontext():
            self.compare_gradients(of_step, step)
            losses |= self.backward(of_step)
        self.update_student(step, losses)  # after it, after_step: EMA teacher
        self.write_metrics(losses)
        self.last_step = step

    def next_step(self) -> Step:
        """The next paired batch on the device."""
        start = time.perf_counter()
        batch = next(self._data_loader_iter)
        self.storage.put_scalar("data_time", time.perf_counter() - start)
        return Step.from_batch(self.iter, batch, self.student.normalize)

    def backward_masked(self, step: Step) -> dict[str, Tensor]:
        """Forward and backward of the masked view (MIC), alone and first: its graph needs no other
        view, and is gone before theirs takes the memory. The gradients add up to the same.

        Batch norm's running statistics, by which tests are normalised, are of whole images."""
        if step.masked is None:
            return {}
        # Between processes gradients are summed once, in the last backward of the step.
        ddp = nullcontext() if self.model is self.student else self.model.no_sync()
        with ddp, self.statistics_kept():
            with self.autocast():
                outputs = self.model({"masked": step.masked.images}, embed=False)["masked"]
            return self.backward(self.criterion.of_masked(outputs, step.masked))

    def backward(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Adds the gradients of weighted losses; returns the losses without their graph."""
        sum(self.scaled(losses).values()).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def scaled(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses, in float16 so large that small gradients do not vanish."""
        return {name: self.grad_scaler.scale(loss) for name, loss in losses.items()}

    def compare_gradients(self, losses: dict[str, Tensor], step: Step) -> None:
        """Every GRADIENT_SHARE_PERIOD iterations, how much the prototypes' losses pull where their
        gradients and the segmentation's meet: what both heads read of the decoder, if they share
        it, and the encoder's weights that learn."""
        period = self.cfg.PROTOTYPES.GRADIENT_SHARE_PERIOD
        if not step.pixels or not period or step.iteration % period:
            return
        encoder = [each for each in self.student.backbone.parameters() if each.requires_grad]
        shared = self.student.prototype_head.fusion is None
        places = {"fused": step.fused if shared else [], "encoder": encoder}
        if where := {place: tensors for place, tensors in places.items() if tensors}:
            self.metrics.add(gradient_share(self.scaled(losses), where))

    @contextmanager
    def statistics_kept(self) -> Iterator[None]:
        """What happens inside leaves the student's running statistics as they were."""
        before = [each.clone() for each in self.statistics]
        yield
        if before:
            torch._foreach_copy_(self.statistics, before)

    def update_student(self, step: Step, losses: dict[str, Tensor]) -> None:
        """The optimiser's step; where a loss or gradient is not finite there is none, and what the
        forward has changed is taken back."""
        self.grad_scaler.unscale_(self.optimizer)
        # 1 where this step shall change nothing, else 0. A fused optimiser reads this attribute on
        # the device, which is GradScaler's own way: an "if" would wait for the device.
        self.optimizer.found_inf = self.guard.check(step, losses)
        self.optimizer.step()
        self.grad_scaler.update()

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

        Raises: Diverged: SOLVER.MAX_SKIPPED steps in a row were skipped.
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
            # On a GPU detectron2's printer shows the device's peak memory, here the process's: it
            # prints what begins with "[metric]".
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            values["[metric] max_mem_MiB"] = peak
        else:
            values["gpu/max_mem_MiB"] = torch.cuda.max_memory_allocated() / 2**20
            values["gpu/max_reserved_MiB"] = torch.cuda.max_memory_reserved() / 2**20
        self.storage.put_scalars(smoothing_hint=False, **values)

    # ---- what a subclass may replace, as in detectron2's DefaultTrainer

    @classmethod
    def build_train_loader(cls, cfg):
        return build_paired_loader(cfg)

    @classmethod
    def build_test_loader(cls, cfg, dataset_name: str):
        return build_test_loader(cfg, dataset_name)

    @classmethod
    def build_evaluator(cls, cfg, dataset_name: str) -> DatasetEvaluator:
        return build_evaluator(cfg, dataset_name)

    def build_writers(self) -> list:
        """Log, metrics.json and TensorBoard; with WANDB.PROJECT also Weights & Biases. They open
        their files: called when training begins, on the main process."""
        writers = default_writers(self.cfg.OUTPUT_DIR, self.max_iter)
        return [WandbWriter(self.cfg), *writers] if self.cfg.WANDB.PROJECT else writers

    def build_hooks(self) -> list:
        cfg = self.cfg
        return [
            hooks.IterationTimer(),
            hooks.LRScheduler(),
            # Before the checkpoint: the teacher is saved with the iteration's update in it.
            self.adaptation,
            self.data_loader.bad_files,
            CheckpointHook(self.checkpointer, cfg.SOLVER.CHECKPOINT_PERIOD),
            EvaluationHook(cfg.TEST.EVAL_PERIOD, self.evaluate),
            SelectionHook(
                self.checkpointer, cfg.TEST.EVAL_PERIOD, headline_key(cfg, cfg.TEST.SELECT_ON)
            )
            if cfg.TEST.SELECT_ON
            else None,
            TrainingPictures(cfg) if comm.is_main_process() and cfg.VIS_PERIOD else None,
        ]

    # ---- begin and end

    def train(self) -> OrderedDict:
        """Trains from ``start_iter`` to ``max_iter``; returns the final scores."""
        super().train(self.start_iter, self.max_iter)
        return self._last_eval_results

    def before_train(self) -> None:
        if comm.is_main_process():
            start_metrics(Path(self.cfg.OUTPUT_DIR) / "metrics.json", self.start_iter)
            self.register_hooks([hooks.PeriodicWriter(self.build_writers(), self.cfg.LOG_PERIOD)])
        super().before_train()

    def after_train(self) -> None:
        self.iter = min(self.iter, self.max_iter)  # one more, if a finished run is resumed
        super().after_train()
        if self._data_loader_iter_obj is not None:
            self._data_loader_iter_obj.close()  # ends the workers

    def evaluate(self) -> OrderedDict:
        """Scores of both networks on DATASETS.TEST, see :func:`evaluate_models`; the same on all
        ranks."""
        with without_compiling() if self.cfg.MODEL.COMPILE else nullcontext():
            results = evaluate_models(
                self.cfg,
                self.student,
                self.teacher,
                build_test_loader=self.build_test_loader,
                build_evaluator=self.build_evaluator,
            )
        self._last_eval_results = comm.all_gather(results)[0]
        return self._last_eval_results

    # ---- state

    def resume_or_load(self, resume: bool = True) -> None:
        """Starts from MODEL.WEIGHTS; with ``resume`` goes on from the newest checkpoint of
        OUTPUT_DIR, if there is one.

        A start from a checkpoint of this project takes its weights, and not its prototypes: they
        start at PROTOTYPES.INIT.ITER, from this run's embeddings.
        """
        self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if resume and self.checkpointer.has_checkpoint():
            self.start_iter = self.iter + 1  # the checkpoint's iteration is done
        self.data_loader.seek(self.start_iter)

    def state_dict(self) -> dict:
        """Everything that the networks do not hold. All ranks must call it."""
        return super().state_dict() | {
            "grad_scaler": self.grad_scaler.state_dict(),
            "run": run_identity(self.cfg),
            "guard": self.guard.state_dict(),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        """Raises ValueError where the random streams of the resumed run would differ from the saved
        one's."""
        check_same_run(state_dict["run"], self.cfg)
        check_groups(self.optimizer, state_dict["optimizer"])
        rates = rates_of(self.optimizer)
        super().load_state_dict(state_dict)
        set_rates_(self.optimizer, self.scheduler, rates)
        if state_dict["grad_scaler"]:  # empty after a run in another precision than float16
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        self.guard.load_state_dict(state_dict["guard"])


def ddp_options(cfg) -> dict:
    """Arguments of DistributedDataParallel, which differ between GPUs and CPU processes."""
    # Gradients live in the messages' buffers: one copy of them, not two.
    options: dict = {"broadcast_buffers": False, "gradient_as_bucket_view": True}
    if cfg.MODEL.DEVICE == "cpu":
        options["device_ids"] = None
    return options
