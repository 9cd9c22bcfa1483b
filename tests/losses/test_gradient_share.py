"""Length and direction of the prototype losses' gradients, of losses linear in the features."""

import pytest
import torch

from mpcl.losses.gradient_share import gradient_share


def test_length_and_angle_are_those_of_the_gradients():
    source, mixed = (torch.zeros(2, requires_grad=True) for _ in range(2))
    losses = {
        "loss_sem_seg": 3 * source[0],
        "loss_sem_seg_mix": 4 * mixed[0],  # together a gradient of length 5
        "loss_contrast": 0.6 * source[0] + 0.8 * mixed[1],
        "loss_consistency": -2 * mixed[0],  # does not depend on the source
    }
    scalars = gradient_share(losses, {"fused": [source, mixed], "encoder": [source]})
    assert {name: float(value) for name, value in scalars.items()} == pytest.approx(
        {
            "gradient_share/fused/contrast": 1 / 5,
            "gradient_cosine/fused/contrast": 0.6 * 3 / 5,
            "gradient_share/fused/consistency": 2 / 5,
            "gradient_cosine/fused/consistency": -4 / 5,
            "gradient_share/encoder/contrast": 0.6 / 3,
            "gradient_cosine/encoder/contrast": 1,
            "gradient_share/encoder/consistency": 0,
            "gradient_cosine/encoder/consistency": 0,
        }
    )
    sum(losses.values()).backward()  # the graph is still there
    assert source.grad is not None


def test_a_loss_without_a_gradient_has_share_and_cosine_zero():
    features = torch.zeros(2, requires_grad=True)
    names = ("loss_sem_seg", "loss_sem_seg_mix", "loss_contrast", "loss_consistency")
    scalars = gradient_share({name: 0 * features.sum() for name in names}, {"fused": [features]})
    assert all(value == 0 for value in scalars.values())
