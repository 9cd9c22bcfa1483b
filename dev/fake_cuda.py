#!/usr/bin/env python
"""What a training step does on a GPU, traced at full size on any machine: no value is computed.

  python dev/fake_cuda.py projects/MPCL/configs/mic_gauss.yaml [--start] [KEY VALUE ...]

The real trainer's step runs on tensors that have a shape, a type and a device, but no content.
Prints how many operators it launches, and the most bytes of tensors that are alive at once. Fails
where an operator mixes devices, or makes the host wait for the GPU. With --start the step is the
one in which the prototypes of all classes start; it reads from the device, and may wait.
"""

import argparse
import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
import torch._dynamo  # looks at torch.Tensor's methods before one is replaced below
import torch.nn.functional as F
from benchmarks.step import SyntheticTrainer
from detectron2.utils.events import EventStorage
from tabulate import tabulate
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from mpcl.config import get_cfg_from

CUDA, META = torch.device("cuda", 0), torch.device("meta")
_COPIES = ("_to_copy", "copy_")
_NO_LAUNCH = ("detach", "alias", "lift_fresh", "_unsafe_view", "set_", "empty", "empty_like")
_NO_LAUNCH += ("empty_strided", "new_empty", "new_empty_strided")


# What CUDA's autocast casts, of what the step calls (ATen/autocast_mode.h); "like torch's own" in
# tests/engine/test_fake_cuda.py.
def flash_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if input.dim() != 3 or bias is None:
        return F.linear(input, weight, bias)
    rows = torch.addmm(bias, input.reshape(-1, input.shape[-1]), weight.t())
    return rows.view(*input.shape[:2], -1)


# What a GPU takes for them, but the meta device does not.
_ON_GPU = {F.scaled_dot_product_attention: flash_attention, F.linear: _linear}
_LOWER = {F.conv2d, _linear, flash_attention, torch.matmul, torch.bmm, torch.addmm}
_LOWER |= {Tensor.matmul, Tensor.__matmul__, Tensor.bmm, torch.einsum}
_FLOAT32 = {F.interpolate, F.layer_norm, F.group_norm, F.softmax, F.log_softmax, F.cross_entropy}
_FLOAT32 |= {torch.sum, Tensor.sum, torch.softmax, Tensor.softmax, Tensor.log_softmax, Tensor.exp}
_FLOAT32 |= {torch.exp, torch.log, Tensor.log, Tensor.pow, torch.pow, torch.linalg.vector_norm}
_FLOAT32 |= {Tensor.rsqrt, Tensor.reciprocal, Tensor.prod, Tensor.cumsum, Tensor.__pow__}


class WaitsForDevice(AssertionError):
    """An operator that makes the host wait for the GPU."""


class FakeCuda(FakeTensorMode):
    """Tensors on the GPU are fake, those on the host real.

    Attributes:
        launches: operators on the GPU that launch kernels, by name.
        live, peak: bytes of the GPU's tensors, now and at most.
        watched: whether it is an error to wait for the device; else, what is read from it is 1.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.launches: Counter[str] = Counter()
        self.live = self.peak = 0
        self.watched = False
        self._inside = False
        self._known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == META:  # what C++ takes a fake tensor's device for
            kwargs["device"] = CUDA
        on_gpu = [t for t in tree_leaves((args, kwargs)) if isinstance(t, FakeTensor)]
        target = kwargs.get("device")
        if not on_gpu and (target is None or target.type == "cpu"):
            return func(*args, **kwargs)
        name = func._schema.name.removeprefix("aten::")
        if name == "exponential_":
            kwargs.pop("generator", None)  # which the meta device refuses
        if self._inside:  # a part of what stands for an operator here
            return super().__torch_dispatch__(func, types, args, kwargs)
        self._refuse_waiting(name, args, kwargs)
        if name == "_local_scalar_dense" and not self.watched:
            return 1
        if name == "nonzero" and not self.watched:
            return args[0].long().unsqueeze(1)
        self._inside = True
        try:
            result = super().__torch_dispatch__(func, types, args, kwargs)
            if name.startswith("convolution"):
                result = _as_cudnn(name, args, result)
        finally:
            self._inside = False
        if not func.is_view and name not in _NO_LAUNCH:
            self.launches[name] += 1
        for tensor in tree_leaves(result):
            if isinstance(tensor, FakeTensor):
                self._remember(tensor.untyped_storage())
        return result

    def _refuse_waiting(self, name: str, args: tuple, kwargs: dict) -> None:
        """Copies between host and GPU that the host waits for. (Operators whose result depends on
        values cannot be faked at all: they raise.)"""
        if name not in _COPIES:
            return
        # copy_(target, source, non_blocking); _to_copy(source, *, device, non_blocking)
        places = {t.device.type for t in args[:2] if isinstance(t, Tensor)}
        if name == "_to_copy" and kwargs.get("device") is not None:
            places.add(kwargs["device"].type)
        waits = not (kwargs.get("non_blocking") or args[2:3] == (True,))
        if len(places) > 1 and waits and self.watched:
            raise WaitsForDevice(f"{name} between {' and '.join(sorted(places))} waits")

    def _remember(self, storage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.live += (size := storage.nbytes())
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def _as_cudnn(name: str, args: tuple, result):
    """cuDNN answers in the input's memory format; the meta device does not."""
    channels_last = torch.channels_last
    backward = name == "convolution_backward"
    if not args[int(backward)].is_contiguous(memory_format=channels_last):
        return result
    if not backward:
        return result.contiguous(memory_format=channels_last)
    of_input, *rest = result
    return (None if of_input is None else of_input.contiguous(memory_format=channels_last), *rest)


class CudaAutocast(TorchFunctionMode):
    """The casts of CUDA's autocast. torch's own look at a C++ device, which must be ``meta`` here:
    torch's autograd engine has no queue for a GPU that is not there."""

    def __init__(self) -> None:
        super().__init__()
        self.cache: dict[int, tuple[Tensor, Tensor]] = {}  # of casts of parameters

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is Tensor.backward:
            with self:  # checkpointed blocks are computed again in it
                return torch.autograd.backward(args, kwargs.pop("gradient", None), **kwargs)
        if not torch.is_autocast_enabled("cuda"):
            return func(*args, **kwargs)
        func = _ON_GPU.get(func, func)
        if func in _LOWER or func in _FLOAT32:
            dtype = torch.get_autocast_dtype("cuda") if func in _LOWER else torch.float32
            args, kwargs = tree_map(lambda value: self.cast(value, dtype), (args, kwargs))
            with torch.autocast("cuda", enabled=False):  # what it is made of is not cast again
                return func(*args, **kwargs)
        return func(*args, **kwargs)

    def cast(self, value, dtype: torch.dtype):
        if not isinstance(value, FakeTensor) or not value.is_floating_point():
            return value
        if value.dtype == dtype or value.dtype == torch.float64:
            return value
        if not (value.is_leaf and value.requires_grad):
            return value.to(dtype)
        if id(value) not in self.cache:
            self.cache[id(value)] = value, value.to(dtype)
        return self.cache[id(value)][1]


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """While it lasts, "cuda" is a device of fake tensors, whose operators the result records."""
    make, generator = torch.Tensor._make_subclass, torch.Generator

    def on_meta(cls, data, *args, dispatch_device=False, **kwargs):
        return make(cls, data, *args, **kwargs)

    with ExitStack() as stack:
        for target, value in {
            "torch.Tensor._make_subclass": staticmethod(on_meta),
            "torch.cuda.amp.common.amp_definitely_not_available": lambda: False,
            "torch.cuda.is_bf16_supported": lambda *_, **__: True,
            "torch.Generator": lambda *_: generator(),
            "torch.autograd.has_torch_function": lambda _: False,  # see CudaAutocast
            "torch.__future__.get_swap_module_params_on_conversion": lambda: False,
            # Weights have no values to be loaded.
            "mpcl.engine.adaptation.load_encoder_": lambda *_: None,
        }.items():
            stack.enter_context(mock.patch(target, value))
        autocast = CudaAutocast()
        # Called at the end of the outermost torch.autocast.
        stack.enter_context(mock.patch("torch.clear_autocast_cache", autocast.cache.clear))
        mode = stack.enter_context(FakeCuda())
        stack.enter_context(autocast)
        yield mode


def trace(config_file: Path, opts: list[str], *, start: bool = False) -> FakeCuda:
    """A step of a training whose prototypes have started, or start in it."""
    own = ["MODEL.DEVICE", "cuda", "MODEL.WEIGHTS", "none", "LOG_PERIOD", "1000000"]
    own += ["PROTOTYPES.GRADIENT_SHARE_PERIOD", "0"]
    with TemporaryDirectory() as folder, fake_cuda() as mode, EventStorage() as storage:
        cfg = get_cfg_from(str(config_file), [*own, "OUTPUT_DIR", folder, *opts])
        trainer = SyntheticTrainer(cfg)
        trainer.iter = cfg.PROTOTYPES.INIT.ITER + (0 if start else 2)
        trainer.storage = storage
        trainer.model.train()
        for hook in trainer._hooks:
            hook.trainer.start_iter = 0
            hook.before_train()
        for parameter in trainer.student.parameters():
            parameter.grad = torch.zeros_like(parameter)
        trainer.optimizer.step()  # makes its state, as an earlier step would have
        trainer.optimizer.zero_grad()
        mode.watched = not start
        mode.launches.clear()
        mode.peak = mode.live
        trainer.step_once()
        return mode


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config_file", type=Path)
    parser.add_argument("--start", action="store_true", help="of the prototypes")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="of the config")
    return parser.parse_args(argv)


def main(argv=None) -> None:
    args = parse_args(argv)
    traced = trace(args.config_file, args.opts, start=args.start)
    rows = [(name, count) for name, count in traced.launches.most_common(12)]
    print(tabulate(rows, headers=["operator", "launched"]))
    print(f"launching operators: {traced.launches.total():,}")
    print(f"peak of live tensors: {traced.peak / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
