"""Opens weight files of every kind without running code from them, and compares their content with
a model."""

import pickle
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.utils.file_io import PathManager
from packaging.version import Version
from safetensors.torch import load_file
from torch import Tensor

from ..utils.state_dict import some
from .packages import SCHEME, weight_file_of_package

State = dict[str, Tensor]

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")

# What a pickle of NumPy arrays in dicts and lists names; numpy._core is NumPy 2's name.
_ARRAYS = {
    *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
    *((f"numpy.{core}.multiarray", "scalar") for core in ("core", "_core")),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    *(("numpy", name) for name in ("ndarray", "dtype")),
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
}


def load_checkpoint_file(path: str | Path) -> State:
    """Tensors, on the CPU, of a .pth, .bin or .safetensors file, or of a Hugging Face folder.

    A state dict nested under ``state_dict`` or ``model`` is unwrapped.

    Raises:
        ValueError: the folder holds no weight file, or the file holds objects other than tensors
            and containers, or no tensors.
    """
    return unwrap(read(find_weight_file(path)))


def find_weight_file(path: str | Path) -> str:
    """The weight file inside a Hugging Face folder, or inside an installed package
    (``package://NAME``); any other file as it is.

    Raises:
        FileNotFoundError: there is nothing at a path of this machine, or no such package.
        ValueError: a folder holds no weight file, a package not exactly one; or a URL, of which
            nothing is downloaded.
    """
    if str(path).startswith(SCHEME):
        return weight_file_of_package(str(path))
    if not Path(path).is_dir():
        if "://" in str(path):
            raise ValueError(
                f"MODEL.WEIGHTS {path} is no file of this machine; download it, and name the file"
            )
        if not Path(path).exists():
            raise FileNotFoundError(
                f"no weights at {path}: put SegFormer's mit_b0.pth ... mit_b5.pth there, or name a "
                "file or a Hugging Face folder with MODEL.WEIGHTS"
            )
        return str(path)
    for name in _WEIGHT_FILES:
        if (Path(path) / name).is_file():
            return str(Path(path) / name)
    raise ValueError(f"no weights in folder {path}: expected one of {', '.join(_WEIGHT_FILES)}")


def read(path: str) -> dict[str, Any]:
    """Content of a .safetensors file, or of a torch file of tensors and plain containers.

    Raises:
        ValueError: it is no such file.
    """
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        with _numpy_scalars():
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # zip, pickle and tensor readers raise nearly every kind
        raise ValueError(_no_weights(path, error, "tensors and plain containers")) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    return content


def _numpy_scalars() -> AbstractContextManager[Any]:
    """Lets scores and seeds that mmcv saved as NumPy scalars pass: numbers, never objects."""
    if Version(torch.__version__) < Version("2.6"):  # knows no names of older NumPys
        return nullcontext()
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds = [type(np.dtype(kind)) for kind in ("?", "i4", "i8", "f4", "f8")]
    return torch.serialization.safe_globals([*names, np.dtype, *kinds])


def refuse_code_in_pickle(path: str) -> None:
    """Raises ValueError unless a .pkl file holds NumPy arrays in plain containers, and nothing else
    (as those of detectron2's model zoo do)."""
    try:
        with PathManager.open(path, "rb") as file:
            _ArraysOnly(file, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # a damaged pickle raises nearly every kind
        expected = "NumPy arrays and plain containers, as in detectron2's model zoo"
        raise ValueError(_no_weights(path, error, expected)) from error


def _no_weights(path: str, error: Exception, expected: str) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
    return (
        f"{path} is no weight file, is truncated, or holds objects that could run code when opened "
        f"({first}); expected {expected}. Download it again; never open it by other means unless "
        "you trust its author"
    )


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ARRAYS:
            raise pickle.UnpicklingError(f"{module}.{name}")
        return super().find_class(module, name)


def unwrap(content: Mapping[str, Any]) -> State:
    """The tensors of a state dict, flat or under ``state_dict`` or ``model``.

    Raises:
        ValueError: there are none.
    """
    nested = content.get("state_dict", content.get("model", content))
    tensors = {name: value for name, value in nested.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(
            f"expected tensors, flat or under 'state_dict' or 'model'; found {some(content)}"
        )
    return tensors


def refuse_nothing(path: str, resume: bool, output_dir: str) -> None:
    """Raises ValueError where there is no checkpoint to predict with.

    Args:
        path: of the checkpoint; "" = none was named, or none found.
        resume: it was looked for in ``output_dir``.
    """
    if not path:
        raise ValueError(
            f"Nothing to evaluate: --resume found no checkpoint in {output_dir}"
            if resume
            else "Nothing to evaluate: name a checkpoint with MODEL.WEIGHTS, or add --resume"
        )


def refuse_random_layers(path: str, initial: Iterable[str], output: str) -> None:
    """Raises ValueError where a layer that predictions need was not in the checkpoint.

    Args:
        initial: names of the tensors that it left as they were.
        output: what predicts, TEST.OUTPUT.
    """
    unused = () if output == "prototypes" else ("prototype_head.",)
    if needed := [name for name in initial if not name.startswith(unused)]:
        raise ValueError(
            f"{path} lacks {len(needed)} tensors that the config's model predicts with "
            f"({some(needed)}); they would be random. Is it of another config, or an encoder only?"
        )
