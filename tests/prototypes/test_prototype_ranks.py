"""Two processes that share the images end with what one process with all of them gets."""

from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from steps import make_step

from mpcl.prototypes import learner as module
from mpcl.prototypes.bank import FeatureBank
from mpcl.prototypes.gaussian import GaussianPrototypes
from mpcl.prototypes.learner import PrototypeLearner

C, K, D, SIDE = 4, 3, 8, 14


def make_learner(pool):
    generator = torch.Generator().manual_seed(0)
    prototypes = GaussianPrototypes(C, K, D, momentum=0.7)
    if pool == "batch":
        mean = torch.randn(C, K, D, generator=generator)
        prototypes.start_(torch.ones(C, dtype=torch.bool), mean, torch.ones(C, K, D))
    options = {"epsilon": 0.1, "start_iter": 0, "start_samples": 1, "seed": 0}
    # Room for everything, so that the bank's content is no matter of chance.
    bank = FeatureBank(C, 2 * SIDE**2, D, samples_per_image=SIDE**2)
    return PrototypeLearner(prototypes=prototypes, banks={"context": bank}, pool=pool, **options)


def compute(images):
    """Starts, assigns and updates prototypes on a slice of two images."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, D, SIDE, SIDE, generator=generator)
    label = torch.randint(0, 3, (2, SIDE, SIDE), generator=generator)
    label[1, -4:] = 3  # only the second of two ranks sees this class
    label[0, :5] = C  # the ranks' shares are uneven
    trusted = (torch.rand(label.shape, generator=generator) < 0.8) & (label < C)
    step = make_step(0, source=(embeddings[images], label[images], trusted[images]))
    results = {}
    for pool in ("batch", "bank"):
        learner = make_learner(pool)
        scalars = learner(step)
        bank = learner.banks["context"]
        results[pool] = {"cluster": step.pixels["context"]["source"].cluster}
        results[pool] |= scalars | dict(learner.prototypes.named_buffers())
        results[pool] |= {"bank": bank.features.sort(1).values, "fill": bank.fill}
        results[pool] |= {"places": torch.tensor(learner.places)}
    return results


def start_unlike(rank):
    """Where prototypes start on a rank whose random numbers are its own, as an unlike GPU's are."""
    learner = make_learner("bank")
    learner.start_method, label = "random", torch.full((1, SIDE, SIDE), C)
    with patch.object(module, "fold_seed", lambda seed, iteration: rank):
        learner(make_step(0, source=(torch.randn(1, D, SIDE, SIDE), label, label < C)))
    return learner.prototypes.start_mean


def worker(rank, folder):
    torch.set_num_threads(1)
    torch.manual_seed(rank)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(compute(slice(rank, rank + 1)), f"{folder}/{rank}.pt")
    torch.save(start_unlike(rank), f"{folder}/start_{rank}.pt")
    dist.barrier()  # torch 2.4 hangs in the next call where a rank is still at work
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    # Forked: a fresh interpreter would take seconds to import everything.
    mp.start_processes(worker, args=(str(folder),), nprocs=2, start_method="fork")
    starts = [torch.load(folder / f"start_{rank}.pt") for rank in range(2)]
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], start_unlike(0))
    assert not torch.equal(starts[0], start_unlike(1))
    return compute(slice(None)), *(torch.load(folder / f"{rank}.pt") for rank in range(2))


def test_an_uneven_split_over_two_ranks_equals_one_process(results):
    single, *ranks = (result["batch"] for result in results)
    cluster, places = single.pop("cluster"), single.pop("places")
    assert torch.equal(torch.cat([rank["cluster"] for rank in ranks]), cluster)
    for rank in ranks:
        assert rank["places"] == places // 2  # the pool is that of all ranks together
        for name, expected in single.items():
            torch.testing.assert_close(rank[name], expected, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("pool", ["batch", "bank"])
def test_ranks_stay_equal_bit_by_bit(results, pool):
    _, first, second = (result[pool] for result in results)
    assert first["started"].all()
    for name in first.keys() - {"cluster"}:
        assert torch.equal(first[name], second[name]), name
