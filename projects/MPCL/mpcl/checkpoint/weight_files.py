"""Opens weight files of every kind without running code from them, and compares their content with
a model."""

import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from safetensors.torch import load_file
from torch import Tensor

from ..utils.atomic_write import write_atomically
from ..utils.foreign_files import check_regular
from ..utils.state_dict import some
from .packages import SCHEME, weight_file_of_package
from .pickles import load_arrays

State = dict[str, Tensor]

CAFFE2 = "Caffe2"  # the author of files whose images are BGR
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


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
    if "://" in str(path):
        raise ValueError(
            f"MODEL.WEIGHTS {path} is no file of this machine; download it, and name the file"
        )
    if Path(path).is_dir():
        found = [file for name in _WEIGHT_FILES if (file := Path(path) / name).is_file()]
        if not found:
            names = ", ".join(_WEIGHT_FILES)
            raise ValueError(
                f"no weights in folder {path}: expected one of {names}; of a run, name its "
                "model_final.pth"
            )
        return str(found[0])
    if not Path(path).exists():
        raise FileNotFoundError(
            f"no weights at {path}: put SegFormer's mit_b0.pth ... mit_b5.pth there, or name a "
            "file or a Hugging Face folder with MODEL.WEIGHTS"
        )
    check_regular(path)
    return str(path)


def read(path: str, *, mmap: bool = False) -> dict[str, Any]:
    """Content of a .safetensors file, or of a torch file of tensors and plain containers, of which
    nothing is larger than the file.

    Args:
        mmap: leave the tensors on the disk until they are used.
    Raises: ValueError: it is no such file.
    """
    with _named(path, "tensors and plain containers"):
        if path.endswith(".safetensors"):
            return load_file(path)
        _check_entries(path)
        with _numpy_scalars():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        _check_tensors(content)
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        found = "other keys than names" if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path}: expected a dict of tensors by name, got {found}")
    return content


def write_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """``torch.save`` that leaves no half-written file under the final name.

    Raises: OSError: it could not be written; what was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: torch.save(dict(content), file))


def check_whole(path: str) -> None:
    """Raises ValueError unless a torch file can be read and its checksums agree."""
    read(path)
    with _named(path, "a whole checkpoint"), zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"{damaged} does not agree with its checksum")


def read_zoo(path: str) -> dict[str, Any]:
    """A .pkl file of detectron2's model zoo, or of Detectron's before it, as detectron2 reads it.

    Raises: ValueError: it holds anything but arrays of numbers in plain containers, or no tensors.
    """
    with _named(path, "NumPy arrays of numbers and plain containers, as in detectron2's model zoo"):
        content = load_arrays(path)
        if not isinstance(content, dict):
            raise ValueError(f"a {type(content).__name__}")
        zoo = content if "model" in content and "__author__" in content else {"__author__": CAFFE2}
        arrays = content.get("model", content.get("blobs", content))
        return zoo | {
            "matching_heuristics": True,
            "model": {
                name: torch.from_numpy(np.asarray(array))
                for name, array in arrays.items()
                if isinstance(array, np.ndarray) and not name.endswith("_momentum")
            },
        }


@contextmanager
def _named(path: str, expected: str) -> Iterator[None]:
    """Says of what a reader raises which file it was, and what was expected."""
    check_regular(path)
    try:
        yield
    except OSError:
        raise
    except MemoryError as error:
        raise ValueError(f"{path} does not fit into this machine's memory") from error
    except Exception as error:  # zip, pickle and tensor readers raise nearly every kind
        first = (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0]
        raise ValueError(
            f"{path} is no weight file, is truncated, or holds objects that could run code when "
            f"opened ({first[:400]}); expected {expected}. Download it again; never open it by "
            "other means unless you trust its author"
        ) from error


def _check_entries(path: str) -> None:
    """Refuses an archive that is larger inside than outside; torch writes none."""
    if not zipfile.is_zipfile(path):  # torch's older format, which holds bytes as they are
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are compressed, which torch's never are")
    if (size := sum(entry.file_size for entry in entries)) > Path(path).stat().st_size:
        raise ValueError(f"its entries claim {size} bytes, more than the file has")


def _check_tensors(content: Any) -> None:
    """Refuses tensors that are no plain blocks of their file's bytes, at any depth."""
    seen: set[int] = set()
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Mapping):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, Tensor):
            plain = value.layout == torch.strided and value.device.type == "cpu"
            if not plain or value.numel() * value.element_size() > value.untyped_storage().nbytes():
                raise ValueError(f"a tensor of {tuple(value.shape)} that its bytes do not fill")


def _numpy_scalars() -> AbstractContextManager[Any]:
    """Lets scores and seeds that mmcv saved as NumPy scalars pass: numbers, never objects."""
    if Version(torch.__version__) < Version("2.6"):  # knows no names of older NumPys
        return nullcontext()
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    kinds = [type(np.dtype(kind)) for kind in ("?", "i4", "i8", "f4", "f8")]
    return torch.serialization.safe_globals([*names, np.dtype, *kinds])


def unwrap(content: Mapping[str, Any]) -> State:
    """The tensors of a state dict, flat or under ``state_dict`` or ``model``.

    Raises: ValueError: there are none.
    """
    nested = content.get("state_dict", content.get("model", content))
    if not isinstance(nested, Mapping):
        nested = {}
    tensors = {name: value for name, value in nested.items() if isinstance(value, Tensor)}
    if not tensors or not all(isinstance(name, str) for name in tensors):
        raise ValueError(
            f"expected tensors, flat or under 'state_dict' or 'model'; found {some(content)}"
        )
    return tensors


def require_weights(path: str, resume: bool, output_dir: str) -> None:
    """Raises ValueError where no checkpoint to predict with was named or, to ``resume``, found."""
    if not path:
        found = f"--resume found no checkpoint in {output_dir}"
        named = "name a checkpoint with MODEL.WEIGHTS, or add --resume"
        raise ValueError(f"Nothing to evaluate: {found if resume else named}")


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
            f"({some(needed)}); they would be random. Is it of another config, or an encoder "
            "only? To evaluate a run: --resume, or MODEL.WEIGHTS <its folder>/model_final.pth"
        )
