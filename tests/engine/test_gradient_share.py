"""Length and direction of the prototype losses' gradients, of losses linear in the features."""

from types import SimpleNamespace

import pytest
import torch

from mpcl.engine.gradient_share import GradientShare


class Metrics(dict):
    add = dict.update


def logged(iteration: int = 0, started: bool = True) -> Metrics:
    source, mixed = (torch.zeros(2, requires_grad=True) for _ in range(2))
    outputs = {"source": SimpleNamespace(features=source), "mixed": SimpleNamespace(features=mixed)}
    losses = {
        "loss_sem_seg": 3 * source[0],
        "loss_sem_seg_mix": 4 * mixed[0],  # together a gradient of length 5
        "loss_contrast": 0.6 * source[0] + 0.8 * mixed[1],
        "loss_consistency": -2 * mixed[0],  # does not depend on the source
    }
    metrics, pixels = Metrics(), {"context": {}} if started else {}
    step = SimpleNamespace(iteration=iteration, outputs=outputs, pixels=pixels)
    GradientShare(10)(losses, step, metrics)
    return metrics


def test_length_and_angle_are_those_of_the_gradients():
    assert {name: float(value) for name, value in logged().items()} == pytest.approx(
        {
            "gradient_share/contrast": 1 / 5,
            "gradient_cosine/contrast": 0.6 * 3 / 5,
            "gradient_share/consistency": 2 / 5,
            "gradient_cosine/consistency": -4 / 5,
        }
    )


def test_nothing_is_measured_between_periods_and_before_prototypes_start():
    assert logged(iteration=9) == logged(started=False) == {} != logged(iteration=20)
