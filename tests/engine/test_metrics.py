import pytest
import torch

from mpcl.engine.metrics import DeviceMetrics


def test_read_gives_means_since_the_last_read():
    metrics = DeviceMetrics()
    metrics.add({"a": torch.tensor(1.0), "b": torch.tensor(5.0)})
    metrics.add({"a": torch.tensor(3.0)})
    assert metrics.read() == pytest.approx({"a": 2.0, "b": 5.0})
    metrics.add({"a": torch.tensor(7)})
    assert metrics.read() == pytest.approx({"a": 7.0})
    assert metrics.read() == {}


def test_add_keeps_no_graph():
    metrics = DeviceMetrics()
    metrics.add({"a": torch.ones((), requires_grad=True) * 2})
    assert not metrics._sums["a"].requires_grad
