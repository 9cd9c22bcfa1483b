"""What is said of invented GPUs that this PyTorch, or its bfloat16, does not run on."""

import doctor
import pytest
import torch

from mpcl.config import get_cfg_from
from mpcl.config.preflight import _check_device
from mpcl.utils.gpus import has_kernels

BUILT = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.fixture
def gpus(monkeypatch):
    """``gpus((7, 0), (8, 6))``: a machine with GPUs of these capabilities."""

    def invent(*capabilities: tuple[int, int], built: tuple[str, ...] = tuple(BUILT)) -> None:
        class Properties:
            name, total_memory = "Invented", 16 * 2**30

        for name, answer in {
            "is_available": lambda: True,
            "device_count": lambda: len(capabilities),
            "get_device_name": lambda index: "Invented",
            "get_device_properties": lambda index: Properties,
            "get_device_capability": lambda index: capabilities[index],
            "get_arch_list": lambda: list(built),
        }.items():
            monkeypatch.setattr(torch.cuda, name, answer)
        monkeypatch.setattr(torch.version, "cuda", "13.0")

    return invent


@pytest.mark.parametrize(
    ("capability", "built", "expected"),
    [
        ((7, 5), BUILT, True),
        ((8, 9), BUILT, True),  # as sm_86
        ((7, 0), BUILT, False),
        ((6, 1), BUILT, False),
        ((13, 0), BUILT, False),
        ((13, 0), [*BUILT, "compute_120"], True),  # translated by the driver
        ((7, 0), ["compute_75"], False),
    ],
)
def test_a_gpu_needs_kernels_of_its_generation(gpus, capability, built, expected):
    gpus(capability, built=tuple(built))
    assert has_kernels(0) is expected


def test_amd_is_not_judged_by_nvidias_numbers(gpus, monkeypatch):
    gpus((9, 4), built=("gfx942",))
    monkeypatch.setattr(torch.version, "cuda", None)
    assert has_kernels(0)


def test_a_training_is_refused_on_gpus_that_cannot_run_it(gpus):
    cfg = get_cfg_from("", ["MODEL.DEVICE", "cuda", "SOLVER.AMP.ENABLED", "True"])
    gpus((8, 0), (7, 5), (7, 0))
    _check_device(cfg, 1)
    with pytest.raises(ValueError, match=r"GPU 1 .* 7\.5, .*set SOLVER\.AMP\.PRECISION float16"):
        _check_device(cfg, 2)
    cfg.SOLVER.AMP.PRECISION = "float16"
    _check_device(cfg, 2)
    with pytest.raises(ValueError, match=r"GPU 2 .* 7\.0, for which torch .* sm_75, .*INSTALL"):
        _check_device(cfg, 3)


def test_one_gpu_by_its_number_is_of_one_process(gpus):
    cfg = get_cfg_from("", ["MODEL.DEVICE", "cuda:1"])
    gpus((8, 0), (8, 0), (8, 0))
    _check_device(cfg, 1)
    with pytest.raises(ValueError, match=r"'cuda:1' names one GPU.*CUDA_VISIBLE_DEVICES"):
        _check_device(cfg, 2)


def test_the_doctor_says_it_of_every_gpu(gpus):
    gpus((8, 0), (7, 5), (7, 0))
    _, *found = doctor.check_devices()
    assert [finding.mark for finding in found] == ["ok", "note", "STOP"]
    assert "no bfloat16" in found[1].text and "no kernels" in found[2].text
