"""Two processes that share the pixels end with what one process with all of them gets."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mpcl.prototypes.bank import FeatureBank
from mpcl.prototypes.clustering import cluster_pixels
from mpcl.prototypes.gaussian import GaussianPrototypes
from mpcl.prototypes.sinkhorn import balance

C, K, D, N = 4, 3, 8, 300


def compute(part):
    """Balance, clusters and update from a slice of a batch; the bank from a slice of the images."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(N, D, generator=generator)
    label = torch.randint(0, 3, (N,), generator=generator)
    label[-60:] = 3  # this class lives at the end: only the second of two ranks sees it
    label[5:15] = C
    takes_part = torch.rand(N, generator=generator) < 0.8
    prototypes = GaussianPrototypes(C, K, D, momentum=0.7)
    mean = torch.randn(C, K, D, generator=generator)
    prototypes.start_(torch.ones(C, dtype=torch.bool), mean, torch.ones(C, K, D))
    embeddings, label, takes_part = embeddings[part], label[part], takes_part[part]

    own = -(embeddings.unsqueeze(1) - prototypes.mean[label.clamp(max=C - 1)]).square().mean(-1)
    table = balance(own, label, C, epsilon=0.05)
    assignment = cluster_pixels(
        prototypes, None, embeddings, label, takes_part, pool="batch", epsilon=0.1
    )
    prototypes.update_(embeddings, assignment.clustered)

    # Both halves of the images have equal shapes, as a loader gives them.
    half = slice(0, 2) if part == slice(None) else slice(*((0, 1) if part.start == 0 else (1, 2)))
    images = torch.arange(2.0 * D * 12).view(2, D, 3, 4)
    image_label = torch.arange(24).view(2, 3, 4) % (C + 1)
    bank = FeatureBank(C, 20, D)
    bank.push_(images[half], image_label[half])
    pooled = cluster_pixels(prototypes, bank, embeddings, label, takes_part, epsilon=0.1)
    return {
        "potentials": table.potentials,
        "violation": table.violation,
        "cluster": assignment.cluster,
        "mean": prototypes.mean,
        "variance": prototypes.variance,
        "idle": prototypes.idle,
        "count": prototypes.count,
        "bank": bank.features.sort(1).values,
        "fill": bank.fill,
        "pooled_violation": pooled.violation,
    }


def worker(rank, folder):
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    part = slice(0, 100) if rank == 0 else slice(100, N)
    torch.save(compute(part), f"{folder}/{rank}.pt")
    dist.barrier()  # torch 2.4 hangs in the next call where a rank is still at work
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(worker, args=(str(folder),), nprocs=2)
    ranks = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return compute(slice(None)), ranks


@pytest.mark.parametrize("name", ["potentials", "violation", "mean", "variance", "idle", "count"])
def test_an_uneven_split_over_two_ranks_equals_one_process(results, name):
    single, ranks = results
    for rank in ranks:
        torch.testing.assert_close(rank[name], single[name], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name", ["potentials", "mean", "variance", "idle", "bank", "fill", "pooled_violation"]
)
def test_ranks_stay_equal_bit_by_bit(results, name):
    _, (first, second) = results
    assert torch.equal(first[name], second[name])


def test_clusters_of_both_ranks_together_are_those_of_one_process(results):
    single, ranks = results
    assert torch.equal(torch.cat([rank["cluster"] for rank in ranks]), single["cluster"])


def test_the_bank_gathers_the_images_of_all_ranks(results):
    single, ranks = results
    assert single["fill"].tolist() == [5, 5, 5, 5]  # 24 pixels, of which 4 are ignored
    for rank in ranks:
        assert torch.equal(rank["bank"], single["bank"])
        assert torch.equal(rank["fill"], single["fill"])
