"""What runs in every iteration must never make the host wait for the device."""

import pytest
import torch
from steps import make_step
from torch.utils._python_dispatch import TorchDispatchMode

from mpcl.losses.prototype import VIEWS, PrototypeLosses
from mpcl.prototypes.bank import FeatureBank
from mpcl.prototypes.centroid import CentroidPrototypes
from mpcl.prototypes.embedding import normalize_embeddings
from mpcl.prototypes.gaussian import GaussianPrototypes
from mpcl.prototypes.learner import PrototypeLearner

HOST_READS = (
    *("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "_unique2", "equal"),
    *("is_nonzero", "bincount", "multinomial"),
)
C, K, D = 4, 3, 16
KINDS = pytest.mark.parametrize("kind", [CentroidPrototypes, GaussianPrototypes])
POOLS = pytest.mark.parametrize("pool", ["batch", "bank"])


class NoHostReads(TorchDispatchMode):
    """Raises at an operation whose result, or whose output's shape, the host must fetch."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            index is not None and index.dtype == torch.bool for index in args[1]
        )
        by_repeats = func is torch.ops.aten.repeat_interleave.Tensor
        if name in HOST_READS or by_mask or by_repeats:
            raise AssertionError(f"{func} makes the host wait")
        return func(*args, **(kwargs or {}))


def iteration(kind, pool, device="cpu"):
    """All that the prototypes do in one training iteration, as a function of no arguments."""
    torch.manual_seed(0)
    prototypes = kind(C, K, D, momentum=0.9).to(device)
    late = torch.arange(C, device=device) > 0
    mean, variance = torch.randn(C, K, D, device=device), torch.ones(C, K, D, device=device)
    prototypes.start_(late, mean, variance)
    raw = torch.randn(2, D, 8, 8, device=device, requires_grad=True)
    label = torch.randint(0, C + 1, (2, 8, 8), device=device)
    trusted = torch.rand(2, 8, 8, device=device) < 0.5
    learner = PrototypeLearner(
        prototypes=prototypes,
        banks={"context": FeatureBank(C, 30, D).to(device)},
        pool=pool,
        epsilon=0.05,
        start_iter=0,
        start_samples=10,
        seed=0,
    )

    def losses(in_class_negatives):
        return PrototypeLosses(
            prototypes=prototypes,
            temperature=0.1,
            contrast_weight=1.0,
            consistency_weight=1.0,
            contrast_views=VIEWS,
            in_class_negatives=in_class_negatives,
            consistency_weighted=True,
            detail_weight=0.0,
        )

    def run():
        view = normalize_embeddings(raw, "layer"), label, trusted
        step = make_step(1, source=view, mixed=view)
        learner(step)
        values = [*losses(True)(step.pixels).values(), *losses(False)(step.pixels).values()]
        torch.stack(values).sum().backward()

    return run


@POOLS
@KINDS
def test_an_iteration_never_reads_the_device(kind, pool):
    run = iteration(kind, pool)
    with NoHostReads():
        run()


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: bool(x.any()),
        lambda x: x.unique(),
        lambda x: x.repeat_interleave(torch.ones(3, dtype=torch.int64)),
        lambda x: x.masked_select(x > 0),
    ],
)
def test_the_guard_notices_host_reads(read):
    x = torch.randn(3)
    with pytest.raises(AssertionError, match="makes the host wait"), NoHostReads():
        read(x)


@pytest.mark.gpu
@POOLS
@KINDS
def test_cuda_reports_no_synchronisation_in_an_iteration(kind, pool):
    run = iteration(kind, pool, "cuda")
    run()  # the first call may allocate and load kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        run()
    finally:
        torch.cuda.set_sync_debug_mode("default")
