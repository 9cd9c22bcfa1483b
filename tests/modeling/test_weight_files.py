import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from mpcl.checkpoint.weight_files import refuse_code_in_pickle
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
