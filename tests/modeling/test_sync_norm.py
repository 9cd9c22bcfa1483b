"""A network whose batch norms were replaced computes what it computed; ranks, what one process."""

import pytest
import timm
import torch
import torch.distributed as dist
from processes import FORKS, statuses
from torch import nn

from mpcl.modeling.sync_norm import SyncBatchNorm, synchronise_batch_norm


def test_outputs_are_those_of_the_plain_norms():
    torch.manual_seed(0)
    network = timm.create_model("test_efficientnet", pretrained=False).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = network(images)
        replaced = synchronise_batch_norm(network)
        torch.testing.assert_close(replaced(images), expected)
    assert any(isinstance(module, SyncBatchNorm) for module in replaced.modules())


def compute(norm: nn.Module, part: slice, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Output, statistics and gradients of a norm in training, for a part of four images."""
    torch.manual_seed(0)
    images, wanted = torch.randn(2, 4, 3, 5, 7) * 3 + 20
    with torch.no_grad():
        norm.weight.copy_(torch.randn(3))
        norm.bias.copy_(torch.randn(3))
    images = images[part].to(dtype).requires_grad_()
    output = norm(images)
    (output.float() * wanted[part]).sum().backward()
    gradients = {f"gradient of {n}": p.grad for n, p in norm.named_parameters()}
    return {"output": output.detach(), "gradient": images.grad, **norm.state_dict(), **gradients}


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def worker(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    part = slice(2 * rank, 2 * rank + 2)
    results = {name: compute(SyncBatchNorm(3), part, dtype) for name, dtype in DTYPES.items()}
    torch.save(results, f"{folder}/{rank}.pth")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("norms")
    processes = [FORKS.Process(target=worker, args=(rank, folder)) for rank in range(2)]
    for process in processes:
        process.start()
    assert statuses(processes) == [0, 0]
    return [torch.load(folder / f"{rank}.pth") for rank in range(2)]


@pytest.mark.parametrize("name", DTYPES)
def test_two_ranks_normalise_as_one_process(ranks, name):
    both, one = [rank[name] for rank in ranks], compute(nn.BatchNorm2d(3), slice(4), DTYPES[name])
    for key, expected in one.items():
        if key in ("output", "gradient"):  # of the images of each rank
            found = torch.cat([rank[key] for rank in both])
        elif key.startswith("gradient of"):  # DDP sums them
            found = both[0][key] + both[1][key]
        else:
            found = both[0][key]
            assert torch.equal(found, both[1][key])
        assert found.dtype == expected.dtype
        tolerance = 1e-5 if name == "float32" else 1e-2
        torch.testing.assert_close(
            found,
            expected,
            rtol=tolerance,
            atol=tolerance,
            msg=lambda message, key=key: f"{key}: {message}",
        )


def test_frozen_parameters_stay_frozen():
    network = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2))
    network[0].requires_grad_(False)
    replaced = synchronise_batch_norm(network)
    assert [p.requires_grad for p in replaced.parameters()] == [False, False, True, True]
