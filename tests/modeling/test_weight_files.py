import hashlib
import os
import pickle
import resource
import zipfile
from collections import OrderedDict
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mpcl.checkpoint import packages
from mpcl.checkpoint.pickles import load_arrays
from mpcl.checkpoint.weight_files import find_weight_file, read, read_zoo
from mpcl.checkpoint.weights import WeightsCheckpointer
from mpcl.utils.state_dict import faults


def dump(content, path: Path, protocol: int = pickle.DEFAULT_PROTOCOL) -> str:
    path.write_bytes(pickle.dumps(content, protocol))
    return str(path)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_of_arrays_gives_its_arrays(protocol, tmp_path):
    rng = np.random.default_rng(0)
    arrays = {
        "conv.weight": rng.normal(size=(2, 3)).astype(np.float32),
        "columns": np.asfortranarray(rng.integers(-9, 9, (3, 2, 2))),
        "big_endian": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 2), np.uint8),
        "mask": np.array([True, False]),
        "scale": np.float32(2),
    }
    content = OrderedDict(
        model=arrays, twice=[arrays["mask"], arrays["mask"]], depth=(1, "a", None)
    )
    read = load_arrays(dump(content, tmp_path / "zoo.pkl", protocol))
    assert read["depth"] == (1, "a", None) and read["twice"][0] is read["twice"][1]
    for name, array in arrays.items():
        np.testing.assert_array_equal(read["model"][name], array)
        assert read["model"][name].dtype == array.dtype.newbyteorder("=")


class Call:
    """Pickled as a call of NumPy's, and the state that is given to what it returns."""

    def __init__(self, function, arguments, state=None):
        self.parts = function, arguments, state

    def __reduce__(self):
        return self.parts


RECONSTRUCT, (NDARRAY, EMPTY, LETTER), _ = np.zeros(1).__reduce__()


def array(kind="f4", shape=(2,), data=bytes(8), state=(3, "<", None, None, None, -1, -1, 0)):
    dtype = Call(np.dtype, (kind, False, True), state)
    return Call(RECONSTRUCT, (NDARRAY, EMPTY, LETTER), (1, shape, dtype, False, data))


@pytest.mark.parametrize(
    "forged",
    [
        # A dtype of objects whose flags say that it holds none: bytes would become pointers.
        array("O8", (1,), b"A" * 8, (3, "|", None, None, None, -1, -1, 0)),
        array("V8", (1,)),
        array("O", (1,)),
        array(shape=(3,)),
        array(shape=(-2,)),
        array(shape=(2**40,)),
        array("f4,f4", (1,)),
        Call(np.dtype, ("f4", False, True), (3, "<", None, None, None, -1, -1, 63)),
        Call(RECONSTRUCT, (NDARRAY, (2**40,), LETTER)),
        Call(RECONSTRUCT, (np.dtype, EMPTY, LETTER)),
    ],
    ids=range(10),
)
def test_an_array_that_is_not_plainly_numbers_is_refused(forged, tmp_path):
    path = dump({"model": {"w": forged}}, tmp_path / "zoo.pkl")
    with pytest.raises(ValueError, match=r"zoo\.pkl is no weight file"):
        read_zoo(path)


def test_nothing_is_reserved_because_a_pickle_says_so(tmp_path):
    claims = {
        "memo": b"\x80\x02Nr\xff\xff\xff\x7f.",
        "bytes": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",
    }
    resource_before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, content in claims.items():
        (tmp_path / f"{name}.pkl").write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}\.pkl"):
            read_zoo(str(tmp_path / f"{name}.pkl"))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resource_before < 100_000  # KiB


def recompress(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)


def test_a_checkpoint_that_unfolds_is_refused_before_it_does(tmp_path, monkeypatch):
    path = tmp_path / "bomb.pth"
    torch.save({"model": {"w": torch.zeros(2**20)}}, path)
    read(str(path))
    recompress(path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    with pytest.raises(ValueError, match=r"bomb\.pth.*compressed"):
        read(str(path))


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(2**40), torch.zeros(1).to_sparse(), torch.empty(2, device="meta")],
    ids=["expanded", "sparse", "meta"],
)
def test_a_tensor_larger_than_its_bytes_is_refused(tensor, tmp_path):
    torch.save({"a": [{"b": tensor}]}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth.*bytes do not fill"):
        read(str(tmp_path / "odd.pth"))


@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".safetensors", ".pyth"])
def test_pipes_and_devices_are_no_weights(suffix, tmp_path):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"zero{suffix}").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        path = str(tmp_path / f"{name}{suffix}")
        with pytest.raises(ValueError, match=rf"{name}\{suffix} is no regular file"):
            WeightsCheckpointer(nn.Linear(1, 1)).load(path)


def test_of_a_folder_the_file_that_holds_nothing_but_tensors_is_read(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "pytorch_model.bin")
    save_file({"a": torch.ones(1)}, tmp_path / "model.safetensors")
    assert read(find_weight_file(tmp_path))["a"] == 1


def test_memory_that_is_not_there_is_said_with_the_file(tmp_path, monkeypatch):
    torch.save({"a": torch.zeros(1)}, tmp_path / "large.pth")
    monkeypatch.setattr(torch, "load", Mock(side_effect=MemoryError))
    with pytest.raises(ValueError, match=r"large\.pth does not fit into this machine's memory"):
        read(str(tmp_path / "large.pth"))


def test_a_torch_file_is_never_matched_by_likeness(tmp_path):
    model = nn.Module()
    model.backbone = nn.Linear(2, 2)
    state = {"model": {"other.weight": torch.zeros(2, 2)}, "matching_heuristics": True}
    torch.save(state, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd\.pth"):
        WeightsCheckpointer(model).load(str(tmp_path / "odd.pth"))
    path = dump({"model": {"bias": np.zeros(2)}, "__author__": "zoo"}, tmp_path / "zoo.pkl")
    with pytest.raises(ValueError, match=r"lacks 1 of the backbone: backbone\.weight"):
        WeightsCheckpointer(model).load(path)
    path = dump({"model": {"stem": np.zeros(3)}, "__author__": "zoo"}, tmp_path / "zoo.pkl")
    with pytest.raises(ValueError, match="no tensor of the weights fits"):
        WeightsCheckpointer(model).load(path)


def test_faults_name_what_is_missing_unknown_and_misshapen():
    expected = nn.Linear(2, 3).state_dict()
    assert faults(expected, expected) == ""
    found = faults({"weight": torch.ones(2, 2), "scale": torch.ones(1)}, expected)
    assert found == "1 missing (bias); 1 unknown (scale); 1 misshapen (weight)"


@pytest.fixture
def package(tmp_path, monkeypatch) -> Path:
    """An installed package ``some_model`` whose code must not run."""
    monkeypatch.syspath_prepend(tmp_path)
    folder = tmp_path / "some_model"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise AssertionError('this must not run')")
    return folder


def test_the_one_weight_file_of_an_installed_package_is_found_and_no_code_runs(package):
    (package / "models").mkdir()
    torch.save({"w": torch.ones(2)}, package / "models" / "net-12345678.pth")
    for path in ("package://some_model", "package://some-model"):  # its name here, and for pip
        assert torch.equal(read(find_weight_file(path))["w"], torch.ones(2))


def test_a_package_that_is_missing_or_ambiguous_is_refused_with_its_name(package):
    with pytest.raises(FileNotFoundError, match="pip install other-model"):
        find_weight_file("package://other_model")
    for name in ("some_model.models", "", "../some_model"):
        with pytest.raises(FileNotFoundError, match="no package"):
            find_weight_file(f"package://{name}")
    with pytest.raises(ValueError, match=r"'some_model' must hold one weight file .* found none"):
        find_weight_file("package://some_model")
    for name in ("a.pth", "b.safetensors"):
        (package / name).touch()
    with pytest.raises(ValueError, match=r"'some_model'.* found a\.pth, b\.safetensors"):
        find_weight_file("package://some_model")


def test_a_released_package_with_another_file_is_refused(package, monkeypatch):
    path = package / "net.pth"
    torch.save({"w": torch.ones(2)}, path)
    released = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(packages._SHA256, "some_model", released)
    find_weight_file("package://some_model")
    torch.save({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"net\.pth is not the file.*some-model==0\.1\.0"):
        find_weight_file("package://some_model")
