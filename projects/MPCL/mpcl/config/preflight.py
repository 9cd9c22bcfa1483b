"""What can be known before training starts: every fault at once, in seconds, nothing written."""

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from ..checkpoint.weight_files import refuse_nothing, refuse_random_layers
from ..checkpoint.weights import WeightsCheckpointer, load_encoder_
from ..data.files import Record, sample
from ..data.resizing import keep_aspect_size, scale_factors
from ..data.sets.checking import FileReport, check_headers, check_record, label_ids, palette_faults
from ..data.sets.classes import classes_of, read_classes
from ..data.sets.registration import check_ignore_label, load_records, registered_names
from ..utils.gpus import computes_bfloat16, has_kernels
from .notes import distance_notes, length_notes, scale_notes, unread_notes
from .reading import get

_SETS = "See datasets/README.md; tools/check_data.py --list shows the names"


class _Role(NamedTuple):
    """What a config wants of the sets under one of its keys."""

    key: str
    labelled: bool
    size_key: str = ""  # of the box that training images are fitted into; "" = not trained on


_SOURCE = _Role("DATASETS.TRAIN", True, "SOURCE_SIZE")
_TARGET = _Role("DATASETS.TRAIN_TARGET", False, "TARGET_SIZE")
_TEST = _Role("DATASETS.TEST", True)


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

    Of every data set the files are listed and up to 16 images, with their labels, are decoded
    (``tools/check_data.py`` looks at all of them); of evaluation sets, headers are read as well.
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
    sets, of_weights = _Sets(cfg), list[str]()
    checks: list[Callable[[], object]] = [
        partial(_check_device, cfg, local_processes),
        partial(_check_output, cfg.OUTPUT_DIR),
        partial(_check_weights, cfg, resumed, eval_only, of_weights),
    ]
    if not eval_only:
        checks.append(partial(_check_batch, cfg, world_size))
        checks.append(partial(_check_tracking, cfg))
        checks += sets.checks(_SOURCE)
        checks += sets.checks(_TARGET) if cfg.SELF_TRAINING.ENABLED else []
    checks += sets.checks(_TEST)
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
    path, resume = cfg.MODEL.WEIGHTS, resumed is not None
    if eval_only:
        path = resumed if resume else path
        refuse_nothing(path, resume, cfg.OUTPUT_DIR)
    meta, cpu = cfg.clone(), cfg.clone()
    for clone in (meta, cpu):
        clone.defrost()
    meta.MODEL.DEVICE, cpu.MODEL.DEVICE = "meta", "cpu"
    with _silence():
        try:
            with torch.device("meta"):
                model = build_model(meta)  # names and shapes, no memory
        except RuntimeError:  # such as of a backbone that reads a number from a tensor
            model = build_model(cpu)
        if start := resumed or path:
            checkpointer = WeightsCheckpointer(
                model,
                allow_unmatched=cfg.MODEL.ALLOW_UNMATCHED,
                with_prototypes=eval_only or bool(resumed),
            )
            checkpointer.load(start, checkpointables=[])
        distance = cfg.SELF_TRAINING.ENABLED and cfg.SELF_TRAINING.FEATURE_DISTANCE.WEIGHT > 0
        if distance and not eval_only:  # compares with it, also in a resumed run
            load_encoder_(model.backbone, path)
    if eval_only:
        refuse_random_layers(path, checkpointer.initial, cfg.TEST.OUTPUT)
    if eval_only or resumed or not path:
        return
    head = {name for name in model.state_dict() if name.startswith("sem_seg_head.")}
    if not head - {*checkpointer.initial}:
        return
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


class _Sets:
    """The checks of data sets.

    Attributes:
        notes: what was found that does not stop the run.
        scales: by how much the images of sets to train on are resized.
    """

    def __init__(self, cfg: CfgNode) -> None:
        self.cfg = cfg
        self.notes: list[str] = []
        self.scales: dict[str, list[float]] = {}
        self.learned: set[str] = set()  # images that are trained on with their labels

    def checks(self, role: _Role) -> list[Callable[[], object]]:
        names = get(self.cfg, role.key) or ([""] if role.size_key else [])
        return [partial(self._check, role, name) for name in names]

    def _check(self, role: _Role, name: str) -> None:
        records = _records(role, name)
        metadata, num_classes = MetadataCatalog.get(name), self.cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        classes = metadata.get("stuff_classes") if role.labelled else None
        if role.labelled:
            check_ignore_label(name)
        if classes is not None:
            if len(classes) != num_classes:
                raise ValueError(
                    f"{role.key}: {name} has {len(classes)} classes, but "
                    f"MODEL.SEM_SEG_HEAD.NUM_CLASSES is {num_classes}; expected the same number: "
                    f"set it to {len(classes)}, or name other sets"
                )
            self._compare_classes(role, name, classes)
        label_map, some = metadata.get("label_map"), sample(records)
        reports = [check_record(record, label_map, num_classes) for record in some]
        faults = [fault for report in reports for fault in report.faults]
        if faults and not (role.size_key and self.cfg.DATALOADER.ON_BAD_FILE == "skip"):
            raise ValueError(f"{role.key}: {name}: {faults[0]}")
        self.notes += [f"{name}: {fault} (it will be skipped)" for fault in faults]
        files = {os.path.realpath(record["file_name"]) for record in records}
        if role is _SOURCE:
            self.learned |= files
        if role is _TEST:
            check_headers(sample(records, 2000))
            if both := len(files & self.learned):
                self.notes.append(
                    f"{both} of the {len(files)} images of {name} are trained on with their "
                    "labels (DATASETS.TRAIN): the scores say nothing about other images"
                )
        if faults:
            return
        if classes is not None:
            self._check_labels(role, name, reports, whole=len(reports) == len(records))
        if role.size_key:
            box = tuple(self.cfg.INPUT[role.size_key])
            self._note_padding(role, name, reports[0])
            self.scales[name] = scale_factors(sample(records, 100), box)

    def _compare_classes(self, role: _Role, name: str, classes: Sequence[str]) -> None:
        """Notes that a set calls as many classes otherwise than the first source; raises where one
        name stands for two indices."""
        first = self.cfg.DATASETS.TRAIN[0] if self.cfg.DATASETS.TRAIN else name
        known = MetadataCatalog.get(first).get("stuff_classes") if first in DatasetCatalog else None
        if known is None or len(known) != len(classes) or list(known) == list(classes):
            return
        differ = [(i, a, b) for i, (a, b) in enumerate(zip(known, classes)) if a != b]
        index, ours, other = differ[0]
        text = f"{role.key}: class {index} is {other!r} in {name} and {ours!r} in {first}"
        if any(b in known for _, _, b in differ):
            raise ValueError(f"{text}; expected one order of the classes in all sets")
        self.notes.append(text)

    def _check_labels(
        self, role: _Role, name: str, reports: Sequence[FileReport], whole: bool
    ) -> None:
        """Notes what the ids in some labels, or in the whole set, say; raises where that is
        certain."""
        ids = label_ids(name, reports)
        faults = ids.faults(sample=role is _TEST or not whole)
        if role is _SOURCE:
            certain = whole and len(self.cfg.DATASETS.TRAIN) == 1
        else:  # a few images may show few classes, but one class alone says nothing
            certain = whole and not ids.usable
        for fault in [*palette_faults(reports), *(faults if certain else [])]:
            raise ValueError(f"{role.key}: {name}: {fault}")
        self.notes += [
            f"{name}, {len(reports)} labels that were looked at: {fault}" for fault in faults
        ]

    def _note_padding(self, role: _Role, name: str, report: FileReport) -> None:
        """Where the crop is larger than the resized images."""
        box, crop = tuple(self.cfg.INPUT[role.size_key]), tuple(self.cfg.INPUT.CROP.SIZE)
        size = keep_aspect_size(report.size, box)
        shown = min(size[0], crop[0]) * min(size[1], crop[1]) / (crop[0] * crop[1])
        if shown < 1:
            self.notes.append(
                f"INPUT.CROP.SIZE {crop} is larger than an image of {name}, height x width {size} "
                f"at INPUT.{role.size_key} {box}: {1 - shown:.0%} of its crops is padding, which "
                "is never learned from. A smaller crop, or a larger size, would waste less"
            )


def _records(role: _Role, name: str) -> list[Record]:
    """Those of a set that is there, and of the kind that the role wants."""
    if not name:
        kind = "labelled" if role.labelled else "image-only"
        raise ValueError(f"{role.key} is empty; expected the names of {kind} data sets. {_SETS}")
    if name not in DatasetCatalog:
        known = registered_names()
        similar = ", ".join(get_close_matches(name, known, n=3) or known)
        raise ValueError(f"{role.key} names {name!r}, which is unknown; known: {similar}. {_SETS}")
    try:
        records = load_records(name)
    except FileNotFoundError as error:
        # Our own sets say all; those of detectron2 leave it at the operating system's words.
        own = error.strerror is None
        missing = f"{error.filename} does not exist. See datasets/README.md"
        text = str(error) if own else f"data set {name!r}: {missing}"
        raise ValueError(f"{role.key}: {text}") from error
    except AssertionError as error:
        raise ValueError(f"{role.key}: {error or name}") from error
    if not records:
        raise ValueError(f"{role.key}: {name} holds no image; expected at least one. {_SETS}")
    labelled = "sem_seg_file_name" in records[0]
    if role.labelled and not labelled:
        raise ValueError(
            f"{role.key} expects labelled sets, but {name} is image-only; name a set "
            "<name>_sem_seg_<split>, or give its labels"
        )
    if labelled and not role.labelled:
        raise ValueError(
            f"{role.key} expects image-only sets, but {name} has labels, which adaptation must not "
            "see; name a set <name>_images_<split>"
        )
    return records
