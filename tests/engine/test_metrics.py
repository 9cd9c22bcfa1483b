import math

import pytest
import torch

from mpcl.engine.metrics import DeviceMetrics


def test_read_gives_means_since_the_last_read():
    metrics = DeviceMetrics()
    metrics.add({})
    assert metrics.read() == {}
    metrics.add({"a": torch.tensor(1.0), "b": torch.tensor(5.0)})
    metrics.add({"a": torch.ones((), requires_grad=True) * 3})
    assert not any(sums.requires_grad for sums in metrics._sums.values())  # keeps no graph
    assert metrics.read() == pytest.approx({"a": 2.0, "b": 5.0})
    metrics.add({"a": torch.tensor(7)})
    assert metrics.read() == pytest.approx({"a": 7.0})
    assert metrics.read() == {}


def test_values_that_are_not_finite_count_as_absent():
    metrics = DeviceMetrics()
    for value in (2.0, math.nan, math.inf, 4.0):
        metrics.add({"some": torch.tensor(value), "never": torch.tensor(math.nan)})
    assert metrics.read() == pytest.approx({"some": 3.0})
