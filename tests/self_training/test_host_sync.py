"""Nothing in the training step makes the host wait for the device."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mpcl.losses.feature_distance import feature_distance
from mpcl.losses.segmentation import pixel_cross_entropy
from mpcl.self_training.class_mix import class_mix, sample_class_mask
from mpcl.self_training.masking import Masking
from mpcl.self_training.pseudo_label import PseudoLabels
from mpcl.self_training.strong_augmentation import StrongAugmentation
from mpcl.self_training.teacher import EMATeacher
from mpcl.structures import View

# Their result on the host, or its size, depends on data of the device.
SYNCING = (
    *("_local_scalar_dense", "equal", "nonzero", "masked_select", "bincount"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive"),
)
INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_")


class NoHostSync(TorchDispatchMode):
    """Fails on operators that make the host wait for the device; on a CPU they can be seen too."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        masked = name in INDEXING and any(i is not None and i.dtype is torch.bool for i in args[1])
        if name in SYNCING or masked or func is torch.ops.aten.repeat_interleave.Tensor:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


def unlabelled(device: str) -> View:
    valid = torch.ones(2, 32, 32, dtype=torch.bool, device=device)
    return View.of_target(torch.rand(2, 3, 32, 32, device=device), valid, 255)


def run_pseudo_label(device: str) -> None:
    logits = torch.randn(2, 5, 8, 8, device=device)
    for scope in ("batch", "image"):
        PseudoLabels(scope=scope, ignore_top=0.1, ignore_bottom=0.2)(logits, unlabelled(device))


def run_class_mix(device: str) -> None:
    label = torch.zeros(2, 32, 32, dtype=torch.int64, device=device)
    source = View.of_source(torch.zeros(2, 3, 32, 32, device=device), label, 255)
    class_mix(sample_class_mask(label, 5), source, unlabelled(device))
    sample_class_mask(label, 5, generator=torch.Generator())
    masking = Masking(block_size=8, ratio=0.5, images="pair", augment=False)
    masking(source, unlabelled(device), torch.abs)


def run_strong_augmentation(device: str) -> None:
    augment = StrongAugmentation([0.0] * 3, [255.0] * 3, jitter_probability=1, blur_probability=1)
    augment(torch.rand(2, 3, 32, 32, device=device))


def run_losses(device: str) -> None:
    logits = torch.randn(2, 5, 8, 8, device=device, requires_grad=True)
    label = torch.full((2, 32, 32), 255, device=device)
    weight = torch.ones(2, 32, 32, device=device)
    distance = feature_distance(logits, logits.detach() + 1, label, (1, 2), 5)
    (pixel_cross_entropy(logits, label, weight) + distance).backward()


def run_teacher(device: str) -> None:
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).to(device)
    teacher = EMATeacher(student)
    teacher.copy_(student)
    teacher.update_(student, 0)
    teacher(torch.zeros(2, 3, 4, 4, device=device))


STEPS = [run_pseudo_label, run_class_mix, run_strong_augmentation, run_losses, run_teacher]


@pytest.mark.parametrize("step", STEPS)
def test_no_operator_waits_for_the_device(step):
    with NoHostSync():
        step("cpu")


@pytest.mark.gpu
@pytest.mark.parametrize("step", STEPS)
def test_cuda_reports_no_synchronisation(step):
    step("cuda")  # the first call may allocate and build plans
    torch.cuda.set_sync_debug_mode("error")
    try:
        step("cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_losses_are_deterministic_on_cuda():
    torch.use_deterministic_algorithms(True)
    try:
        run_losses("cuda")
    finally:
        torch.use_deterministic_algorithms(False)


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
    with pytest.raises(AssertionError, match="waits for the device"), NoHostSync():
        read(torch.ones(3))
