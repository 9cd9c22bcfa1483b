"""Nothing in the training step makes the host wait for the device: neither its parts, with options
that no shipped config sets, nor the whole of it."""

from contextlib import contextmanager
from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpcl.engine import AdaptationTrainer
from mpcl.losses.feature_distance import feature_distance
from mpcl.losses.prototype import VIEWS, PrototypeLosses
from mpcl.losses.segmentation import pixel_cross_entropy
from mpcl.prototypes.bank import FeatureBank
from mpcl.prototypes.centroid import CentroidPrototypes
from mpcl.prototypes.gaussian import GaussianPrototypes
from mpcl.prototypes.learner import POOLS, PrototypeLearner
from mpcl.self_training.class_mix import class_mix, sample_class_mask
from mpcl.self_training.masking import Masking
from mpcl.self_training.pseudo_label import PseudoLabels
from mpcl.self_training.strong_augmentation import StrongAugmentation
from mpcl.self_training.teacher import EMATeacher
from mpcl.structures import Outputs, Step, View

C = 5
# Their result on the host, or its size, depends on data of the device.
READS = (
    *("_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select"),
    *("bincount", "_unique", "_unique2", "unique_dim", "unique_consecutive", "multinomial"),
)
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class NoHostReads(TorchDispatchMode):
    """Fails on operators that make the host wait for the device; on a CPU they can be seen too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        masked = name in INDEXING and any(i is not None and i.dtype is torch.bool for i in args[1])
        if name in READS or masked or func is torch.ops.aten.repeat_interleave.Tensor:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_waiting_for_cuda():
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


ON_BOTH = pytest.mark.parametrize(
    ("guard", "device"),
    [
        pytest.param(NoHostReads, "cpu", id="operators"),
        pytest.param(no_waiting_for_cuda, "cuda", id="cuda", marks=pytest.mark.gpu),
    ],
)


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.index_put_((x > 0,), x.sum()),
        lambda x: x.nonzero(),
        lambda x: x.unique(),
        lambda x: bool((x > 0).any()),
        lambda x: torch.repeat_interleave(x, (x > 0).long()),
        lambda x: x.masked_select(x > 0),
    ],
)
def test_the_guard_itself_notices_reads(read):
    with pytest.raises(AssertionError, match="waits for the device"), NoHostReads():
        read(torch.ones(3))


def unlabelled(device: str) -> View:
    valid = torch.ones(2, 32, 32, dtype=torch.bool, device=device)
    return View.of_target(torch.rand(2, 3, 32, 32, device=device), valid, valid)


def pseudo_label(device: str) -> None:
    logits = torch.randn(2, C, 8, 8, device=device)
    for scope in ("batch", "image"):
        PseudoLabels(scope=scope)(logits, unlabelled(device))


def mix_and_mask(device: str) -> None:
    label = torch.zeros(2, 32, 32, dtype=torch.int64, device=device)
    source = View.of_source(torch.zeros(2, 3, 32, 32, device=device), label)
    class_mix(sample_class_mask(label, C), source, unlabelled(device))
    masking = Masking(block_size=8, ratio=0.5, images="pair", augment=False)
    masking(source, unlabelled(device), torch.abs)


def strong_augmentation(device: str) -> None:
    augment = StrongAugmentation([0.0] * 3, [255.0] * 3, jitter_probability=1, blur_probability=1)
    augment(torch.rand(2, 3, 32, 32, device=device))


def baseline_losses(device: str) -> None:
    logits = torch.randn(2, C, 8, 8, device=device, requires_grad=True)
    label = torch.full((2, 32, 32), 255, device=device)
    weight = torch.ones(2, 32, 32, device=device)
    distance = feature_distance(logits, logits.detach() + 1, label, (1, 2), C)
    (pixel_cross_entropy(logits, label, weight) + distance).backward()


def teacher(device: str) -> None:
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to(device)
    teacher = EMATeacher(student)
    teacher.copy_(student)
    teacher.update_(student, 0)
    teacher(torch.zeros(2, 3, 4, 4, device=device))


def prototypes(kind, pool: str, device: str) -> None:
    """Clustering, update and losses where one class has not started."""
    prototypes = kind(C, 3, 16, momentum=0.9).to(device)
    mean, variance = torch.randn(C, 3, 16, device=device), torch.ones(C, 3, 16, device=device)
    prototypes.start_(torch.arange(C, device=device) > 0, mean, variance)
    embeddings = torch.randn(2, 16, 8, 8, device=device, requires_grad=True)
    label = torch.randint(0, C + 1, (2, 8, 8), device=device)
    trusted = torch.rand(2, 8, 8, device=device) < 0.5
    view = View(embeddings, label, trusted.float(), trusted, trusted)
    step = Step(1, source=view, mixed=view)
    step.outputs = dict.fromkeys(step.views, Outputs(*[embeddings] * 4))
    PrototypeLearner(
        prototypes=prototypes,
        banks={"context": FeatureBank(C, 30, 16).to(device)},
        pool=pool,
        epsilon=0.05,
        start_iter=0,
        start_samples=10,
        seed=0,
    )(step)
    for in_class_negatives in (True, False):
        losses = PrototypeLosses(
            prototypes=prototypes,
            temperature=0.1,
            contrast_weight=1.0,
            consistency_weight=1.0,
            contrast_views=VIEWS,
            in_class_negatives=in_class_negatives,
            consistency_weighted=True,
            detail_weight=0.0,
        )
        torch.stack([*losses(step.pixels).values()]).sum().backward()


PARTS = [pseudo_label, mix_and_mask, strong_augmentation, baseline_losses, teacher]
for kind, pool in product((CentroidPrototypes, GaussianPrototypes), POOLS):
    PARTS.append(partial(prototypes, kind, pool))


@ON_BOTH
@pytest.mark.parametrize("part", PARTS)
def test_no_part_of_the_step_waits_for_the_device(part, guard, device):
    if device == "cuda":
        part(device)  # the first call may allocate and build plans
    with guard():
        part(device)


@ON_BOTH
def test_training_step_never_waits_for_the_device(tiny_cfg, guard, device):
    # Nothing is logged or measured in between; prototypes start at iteration 2, which reads
    # the bank's fill. Images are decoded in another process, where reading tensors is no wait.
    quiet = ("LOG_PERIOD", 100, "PROTOTYPES.GRADIENT_SHARE_PERIOD", 0, "VIS_PERIOD", 0)
    quiet = (*quiet, "DATALOADER.NUM_WORKERS", 1, "DATASETS.TEST", ())
    cfg = tiny_cfg("mic_gauss", "SOLVER.MAX_ITER", 6, "MODEL.DEVICE", device, *quiet)
    trainer = AdaptationTrainer(cfg)
    run_step, checked = trainer.run_step, []

    def checked_step():
        if trainer.iter in (1, 4, 5):
            with guard():
                run_step()
            checked.append(trainer.iter)
        else:
            run_step()

    trainer.run_step = checked_step
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert checked == [1, 4, 5]
    assert trainer.student.prototype_head.prototypes.started.all()


@pytest.mark.gpu
def test_losses_are_deterministic_on_cuda():
    torch.use_deterministic_algorithms(True)
    try:
        baseline_losses("cuda")
    finally:
        torch.use_deterministic_algorithms(False)
