"""What can be known before training starts: every fault at once, in seconds, nothing written."""

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from ..checkpoint.weight_files import refuse_random_layers, require_weights
from ..checkpoint.weights import WeightsCheckpointer, load_encoder_
from ..data.sets.classes import classes_of, read_classes
from ..utils.gpus import computes_bfloat16, has_kernels
from .notes import distance_notes, length_notes, scale_notes, unread_notes
from .set_checks import SOURCE, TARGET, TEST, SetChecks


def preflight(cfg: CfgNode, **job: Any) -> list[str]:
    """:func:`find_faults`; returns the notes, and raises ValueError with all that stops the run."""
    faults, notes = find_faults(cfg, **job)
    if faults:
        listing = "\n".join(f"  - {fault}" for fault in faults)
        several = f"{len(faults)} faults keep this run from starting:\n{listing}"
        raise ValueError(faults[0] if len(faults) == 1 else several)
    return notes


def find_faults(
    cfg: CfgNode,
    *,
    world_size: int = 1,
    local_processes: int = 1,
    eval_only: bool = False,
    resumed: str | None = None,
) -> tuple[list[str], list[str]]:
    """Looks at all that a run needs: device, output folder, batch, weights, data sets.

    Of every data set the files are listed, up to 16 images are decoded with their labels, and the
    headers of up to 2000 are read (``tools/check_data.py`` decodes all of them).
    Weights are compared with the model, name by name.

    Args:
        world_size: processes of the job.
        local_processes: of these on this machine; each takes a GPU if there is any.
        eval_only: no training, hence no training data; but weights, and whole ones.
        resumed: the checkpoint that takes the place of MODEL.WEIGHTS; "" = one was looked for in
            OUTPUT_DIR, and there is none; None = it was not.
    Returns: what stops the run, in sentences that name the thing, what was expected and the remedy;
        and what is legitimate but seldom meant.
    """
    sets, of_weights = SetChecks(cfg), list[str]()
    checks: list[Callable[[], object]] = [
        partial(_check_device, cfg, local_processes),
        partial(_check_output, cfg.OUTPUT_DIR),
        partial(_check_weights, cfg, resumed, eval_only, of_weights),
    ]
    if not eval_only:
        checks.append(partial(_check_batch, cfg, world_size))
        checks.append(partial(_check_tracking, cfg))
        checks += sets.checks(SOURCE)
        checks += sets.checks(TARGET) if cfg.SELF_TRAINING.ENABLED else []
    checks += sets.checks(TEST)
    faults = [fault for check in checks if (fault := _fault(check))]
    notes = [*of_weights, *sets.notes, *scale_notes(sets.scales), *unread_notes(cfg)]
    return faults, notes if eval_only else notes + length_notes(cfg) + distance_notes(cfg)


def _fault(check: Callable[[], object]) -> str:
    try:
        check()
    except (ValueError, OSError, AssertionError) as error:  # detectron2's own sets assert
        return str(error) or type(error).__name__
    return ""


def _check_device(cfg: CfgNode, local_processes: int) -> None:
    name, gpus = cfg.MODEL.DEVICE, torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name)
        if device.type != "cuda":
            torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"MODEL.DEVICE is {name!r}; expected cpu or cuda ({reason})") from None
    if device.type == "cuda" and not gpus:
        raise ValueError(
            f"MODEL.DEVICE is {name!r}, but PyTorch can use no GPU here; set MODEL.DEVICE cpu, or "
            "ask tools/doctor.py what is missing"
        )
    if gpus and max(local_processes, (device.index or 0) + 1) > gpus:
        raise ValueError(
            f"MODEL.DEVICE {name!r} and --num-gpus {local_processes} ask for more GPUs than this "
            f"machine has: {gpus}"
        )
    if device.type == "cuda" and device.index is not None and local_processes > 1:
        raise ValueError(
            f"MODEL.DEVICE {name!r} names one GPU, but --num-gpus {local_processes} takes several; "
            "set MODEL.DEVICE cuda, and CUDA_VISIBLE_DEVICES to those that are meant"
        )
    if device.type == "cuda":
        first = device.index or 0
        for index in range(first, first + local_processes):
            _check_gpu(cfg, index)


def _check_gpu(cfg: CfgNode, index: int) -> None:
    name, capability = torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index)
    subject = f"GPU {index} is a {name} of compute capability {'.'.join(map(str, capability))}"
    if not has_kernels(index):
        raise ValueError(
            f"{subject}, for which torch {torch.__version__} was not built (it knows "
            f"{', '.join(torch.cuda.get_arch_list())}); install a torch that was: see "
            "docs/INSTALL.md"
        )
    amp = cfg.SOLVER.AMP
    if amp.ENABLED and amp.PRECISION == "bfloat16" and not computes_bfloat16(index):
        raise ValueError(
            f"{subject}, which has no bfloat16 arithmetic; set SOLVER.AMP.PRECISION float16"
        )


def _check_output(folder: str) -> None:
    if not folder:
        raise ValueError("OUTPUT_DIR is empty; expected a folder for checkpoints and logs")
    parent = next(
        path for path in [Path(folder), *Path(folder).absolute().parents] if path.exists()
    )
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise ValueError(
            f"OUTPUT_DIR is {folder!r}, but {parent} cannot be written ({error.strerror}); make it "
            "writable, or choose another: OUTPUT_DIR path/to/folder"
        ) from error


def _check_batch(cfg: CfgNode, world_size: int) -> None:
    if cfg.SOLVER.IMS_PER_BATCH % world_size:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}, images of each domain over all "
            f"ranks; expected a multiple of the {world_size} processes"
        )


def _check_tracking(cfg: CfgNode) -> None:
    if cfg.WANDB.PROJECT and find_spec("wandb") is None:
        raise ValueError(
            f"WANDB.PROJECT is {cfg.WANDB.PROJECT!r}, but the package wandb is not installed: pip "
            "install wandb, or leave the key empty (TensorBoard is always written)"
        )


def _check_weights(cfg: CfgNode, resumed: str | None, eval_only: bool, notes: list[str]) -> None:
    """Compares the weights that the run starts from with the model; appends to ``notes``."""
    path, resume = cfg.MODEL.WEIGHTS, resumed is not None
    if eval_only:
        path = resumed if resume else path
        require_weights(path, resume, cfg.OUTPUT_DIR)
    distance = cfg.SELF_TRAINING.ENABLED and cfg.SELF_TRAINING.FEATURE_DISTANCE.WEIGHT > 0
    with _silence():
        model = _skeleton(cfg)
        checkpointer = WeightsCheckpointer(
            model,
            allow_unmatched=cfg.MODEL.ALLOW_UNMATCHED,
            with_prototypes=eval_only or bool(resumed),
        )
        if start := resumed or path:
            checkpointer.load(start, checkpointables=[])
        if distance and not eval_only:  # compares with it, also in a resumed run
            load_encoder_(model.backbone, path)
    if eval_only:
        refuse_random_layers(path, checkpointer.initial, cfg.TEST.OUTPUT)
    elif path and not resumed:
        head = {name for name in model.state_dict() if name.startswith("sem_seg_head.")}
        if head.difference(checkpointer.initial):
            notes += _decode_head_notes(cfg, path, distance)


def _skeleton(cfg: CfgNode) -> nn.Module:
    """The model for its names and shapes, which take no memory on the device ``meta``."""
    meta, cpu = cfg.clone(), cfg.clone()
    for clone, device in ((meta, "meta"), (cpu, "cpu")):
        clone.defrost()
        clone.MODEL.DEVICE = device
    try:
        with torch.device("meta"):
            return build_model(meta)
    except RuntimeError:  # such as of a backbone that reads a number from a tensor
        return build_model(cpu)


def _decode_head_notes(cfg: CfgNode, path: str, distance: bool) -> list[str]:
    """On starting from a whole network: other classes, and the feature distance."""
    notes = []
    before, now = read_classes(Path(path).parent), classes_of(cfg)
    if before and before.stuff_classes != now.stuff_classes:
        notes.append(
            f"{path} was trained on other classes, or another order of them: "
            f"{', '.join(before.stuff_classes)}; now {', '.join(now.stuff_classes)}"
        )
    if distance:
        notes.append(
            f"{path} holds a decode head: the feature distance then compares with an encoder that "
            "was trained further, not with ImageNet's. Name an encoder in MODEL.WEIGHTS, or set "
            "SELF_TRAINING.FEATURE_DISTANCE.WEIGHT 0.0"
        )
    return notes


@contextmanager
def _silence() -> Iterator[None]:
    """The run will say it all again when it loads for good."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
