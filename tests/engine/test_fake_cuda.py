"""The step as a GPU would run it, at full size but for the encoder's depth: devices, types, waits,
launches and memory. No value is computed (dev/fake_cuda.py)."""

import copy

import fake_cuda
import pytest
import torch
from conftest import CONFIGS
from detectron2.modeling import build_model
from fake_cuda import CUDA, WaitsForDevice, trace
from packaging.version import Version
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mpcl.config import get_cfg_from
from mpcl.modeling import mit
from mpcl.structures import Box

pytestmark = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.9"), reason="fakes other operators than newer ones"
)

# (launching operators, GiB alive) of torch 2.14, at most. A change that raises them is to be meant.
CEILINGS = {"source_only": (770, 1.85), "daformer_centroid": (2060, 6.1), "mic_gauss": (4760, 8.5)}
SMALL = ["MODEL.MIT.VARIANT", "tiny", "MODEL.SEM_SEG_HEAD.CONVS_DIM", 16, "PROTOTYPES.DIM", 16]


@pytest.fixture(autouse=True)
def few_blocks(monkeypatch):
    """A block for each stage of MiT-B5, two for the third."""
    shallow = mit.VARIANTS["b5"]._replace(depths=(1, 1, 2, 1))
    monkeypatch.setitem(mit.VARIANTS, "b5", shallow)


@pytest.mark.parametrize("name", CEILINGS)
def test_step_waits_for_nothing_and_stays_below_its_ceilings(name):
    traced = trace(CONFIGS / f"{name}.yaml", [])  # raises where devices mix or the host waits
    assert_below(CEILINGS[name], traced)


def assert_below(ceilings: tuple[int, float], traced: fake_cuda.FakeCuda) -> None:
    for found, most in zip((traced.launches.total(), traced.peak / 2**30), ceilings, strict=True):
        assert 0.9 * most < found <= most


def test_the_start_of_the_prototypes_and_blocks_computed_again_are_traced():
    opts = ["MODEL.BACKBONE.CHECKPOINT", "True"]
    traced = trace(CONFIGS / "daformer_centroid.yaml", opts, start=True)
    assert_below((6350, 5.65), traced)
    assert traced.launches["exponential_"] == 5  # K-means draws a point for each prototype
    # Forward, and again in the backward, of each block of the student; once of the frozen ones.
    assert traced.launches["_scaled_dot_product_flash_attention"] == 5 * (2 + 1 + 1)


WAITS = {
    "copy to the host": lambda x: x.to("cpu"),
    "copy from the host": lambda x: torch.ones(3).to(x),
    "copy in place": lambda x: x.copy_(torch.ones(3)),
    "item": lambda x: x.sum().item(),
    "condition": lambda x: bool((x > 0).any()),
    "nonzero": lambda x: x.nonzero(),
    "mask": lambda x: x[x > 0],
    "mixed devices": lambda x: x + torch.ones(3),
}


@pytest.mark.parametrize("wait", WAITS)
def test_what_waits_or_mixes_devices_is_noticed(wait):
    with fake_cuda.fake_cuda() as mode:
        x = torch.ones(3, device="cuda")
        mode.watched = True
        x.to("cuda", torch.float64) + torch.ones(3).to("cuda", non_blocking=True)
        with pytest.raises((WaitsForDevice, RuntimeError)):
            WAITS[wait](x)


@pytest.mark.parametrize(
    "amp, capability, expected",
    [(True, (8, 0), torch.bfloat16), (True, (7, 5), torch.float32), (False, (9, 0), torch.float32)],
)
def test_predictions_are_in_bfloat16_on_gpus_that_can(monkeypatch, amp, capability, expected):
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: capability)
    opts = ["MODEL.DEVICE", "cpu", "TEST.AMP", amp, *SMALL]
    model = build_model(get_cfg_from(str(CONFIGS / "source_only.yaml"), opts)).eval()
    record = {"image": torch.zeros(3, 64, 64, dtype=torch.uint8), "height": 80, "width": 80}
    with fake_cuda.fake_cuda(), torch.no_grad(), Types() as types:
        (result,) = model.to("cuda")([record])
    (logits,) = result.values()
    assert (logits.dtype, logits.shape, logits.device) == (torch.float32, (19, 80, 80), CUDA)
    convolutions = [dtypes for name, dtypes in types.seen if name.startswith("aten.convolution")]
    assert {dtypes[0] for dtypes in convolutions} == {expected}


def test_live_bytes_are_those_of_the_tensors():
    with fake_cuda.fake_cuda() as mode:
        x = torch.ones(1000, device="cuda", requires_grad=True)
        y = (x * 2).exp()  # kept for the backward; its input is not
        assert (mode.live, mode.peak) == (8000, 12000)
        y.sum().backward()
        assert x.grad.device == CUDA
        del y
        assert mode.live == 8000


class Types(TorchDispatchMode):
    """Operators, and the types that they read."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if str(func).startswith("aten.") and "detach" not in str(func):
            self.seen.append((str(func), [t.dtype for t in tensors]))
        return func(*args, **(kwargs or {}))


def test_casts_are_like_those_of_torchs_own_autocast(tmp_path, monkeypatch):
    # Without gradients torch's own look works on fake tensors, too.
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(
        "torch.nn.functional.scaled_dot_product_attention", fake_cuda.flash_attention
    )
    box = Box(0, 0, 64, 64)  # host tensors are fake there: none can be drawn
    monkeypatch.setattr("mpcl.modeling.hrda.sample_detail_box", lambda *_: box)
    opts = ["MODEL.WEIGHTS", "none", "MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path), *SMALL]
    model = build_model(get_cfg_from(str(CONFIGS / "mic_gauss.yaml"), opts))
    models = [model, copy.deepcopy(model)]

    def forward():
        on_gpu = models.pop().to("cuda")
        images = torch.ones(1, 3, 128, 128, device="cuda")
        torch.manual_seed(0)
        with Types() as types, torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            on_gpu({"source": images})
            on_gpu.score(images)
        return types.seen

    monkeypatch.setattr("torch.__future__.get_swap_module_params_on_conversion", lambda: False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        expected = forward()
    with fake_cuda.fake_cuda():
        found = forward()
    assert len(expected) > 500
    for pair in zip(found, expected, strict=True):
        assert pair[0] == pair[1]
