import math

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
    assert not any(sums.requires_grad for sums in metrics._sums.values())


def test_values_that_are_not_finite_count_as_absent():
    metrics = DeviceMetrics()
    for value in (2.0, math.nan, math.inf, 4.0):
        metrics.add({"some": torch.tensor(value), "never": torch.tensor(math.nan)})
    assert metrics.read() == pytest.approx({"some": 3.0})


def test_nothing_added_is_nothing_read():
    metrics = DeviceMetrics()
    metrics.add({})
    assert metrics.read() == {}


def test_saved_metrics_go_on_where_they_were():
    undisturbed, resumed = DeviceMetrics(), DeviceMetrics()
    values = torch.rand(6, generator=torch.Generator().manual_seed(0))
    for i, value in enumerate(values):
        undisturbed.add({"a": value, "b": value * 3})
        resumed.add({"a": value, "b": value * 3})
        state, resumed = resumed.state_dict(), DeviceMetrics()
        resumed.load_state_dict(state)
        if i == 3:
            undisturbed.add({"late": value})
            resumed.add({"late": value})
    assert resumed.read() == undisturbed.read()  # to the last bit


def test_metrics_of_another_number_of_ranks_are_let_go():
    metrics = DeviceMetrics()
    metrics.add({"a": torch.ones(())})
    state = metrics.state_dict()
    state["sums"] = state["sums"].repeat(2, 1, 1)
    metrics.load_state_dict(state)
    assert metrics.read() == {}
