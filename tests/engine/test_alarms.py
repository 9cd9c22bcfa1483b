import logging
import math

import pytest
import torch

from mpcl.config import get_cfg_from
from mpcl.engine.alarms import CONFIDENT, ENTROPY, CollapseAlarm, class_entropy


def blocks(*shares: int) -> torch.Tensor:
    """(1, 4, 4n) labels: class i on ``shares[i]`` of n 4x4 blocks."""
    row = torch.cat([torch.full((share * 4,), i) for i, share in enumerate(shares)])
    return row.expand(1, 4, -1)


HALF = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(4)
IGNORED = torch.full((1, 4, 40), 255)


@pytest.mark.parametrize(
    ("label", "classes", "expected"),
    [
        (blocks(1, 1, 1, 1), 4, 1.0),
        (blocks(4, 0, 0, 0), 4, 0.0),
        (blocks(1, 1, 0, 0), 4, math.log(2) / math.log(4)),
        (blocks(3, 1, 0, 0), 4, HALF),
        (torch.cat([blocks(1, 1), IGNORED], dim=2), 2, 1.0),
        (IGNORED, 2, math.nan),
        (blocks(3), 1, 1.0),  # one class is no collapse
    ],
)
def test_entropy_of_the_classes_that_are_labelled(label, classes, expected):
    entropy = class_entropy(label, classes)
    torch.testing.assert_close(entropy, torch.tensor(expected), equal_nan=True)


def alarm() -> CollapseAlarm:
    return CollapseAlarm({ENTROPY: 0.2, CONFIDENT: 0.05}, after=100)


def test_warns_once_when_a_value_falls_and_says_when_it_is_back(caplog):
    caplog.set_level(logging.INFO)
    alarmed = alarm()
    for iteration, entropy in ((100, 0.5), (120, 0.1), (140, 0.05), (160, 0.3), (180, 0.1)):
        alarmed(iteration, {ENTROPY: entropy, CONFIDENT: 0.5})
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert ["120" in warnings[0], "180" in warnings[1]] == [True, True] and len(warnings) == 2
    assert "MIN_ENTROPY" in warnings[0] and "collapsed" in warnings[0]
    assert "Iteration 160" in caplog.text and "is back" in caplog.text


def test_no_judgement_at_the_start_or_of_absent_values_or_below_a_floor_of_zero(caplog):
    collapsed = {ENTROPY: 0.0, CONFIDENT: 0.0}
    alarm()(99, collapsed)
    alarm()(100, {"loss": 0.0})
    CollapseAlarm({ENTROPY: 0.0, CONFIDENT: 0.0}, after=0)(0, collapsed)
    assert not caplog.records


def test_confident_fraction_has_an_alarm_of_its_own(caplog):
    alarm()(100, {ENTROPY: 0.5, CONFIDENT: 0.0})
    assert "CONFIDENCE_THRESHOLD" in caplog.text and ENTROPY not in caplog.text


def test_each_floor_and_the_first_iteration_are_those_of_the_config(caplog):
    keys = {"MIN_ENTROPY": 0.5, "MIN_CONFIDENT": 0.1, "AFTER": 7}
    opts = [
        word for key, value in keys.items() for word in (f"SELF_TRAINING.COLLAPSE.{key}", value)
    ]
    alarmed = CollapseAlarm.from_config(get_cfg_from("", opts))
    with caplog.at_level(logging.WARNING):
        alarmed(6, {ENTROPY: 0.0, CONFIDENT: 0.0})
        alarmed(7, {ENTROPY: 0.6, CONFIDENT: 0.2})
        assert not caplog.records
        alarmed(8, {ENTROPY: 0.6, CONFIDENT: 0.09})
        assert "below 0.1" in caplog.text and "MIN_CONFIDENT" in caplog.text
        alarmed(9, {ENTROPY: 0.4, CONFIDENT: 0.2})
    assert "below 0.5" in caplog.text
