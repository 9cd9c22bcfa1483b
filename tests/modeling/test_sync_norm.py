"""A network whose batch norms were replaced computes what it computed."""

import pytest
import timm
import torch

from mpcl.modeling.sync_norm import synchronise_batch_norm


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_outputs_are_those_of_the_plain_norms(device):
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", pretrained=False).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        # The layers for GPUs compute on the CPU, too, in evaluation.
        replaced = synchronise_batch_norm(network, device)
        torch.testing.assert_close(replaced(images), expected)
    assert any("Sync" in type(module).__name__ for module in replaced.modules())
