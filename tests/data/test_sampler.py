import numpy as np
import pytest

from mpcl.data.rare_class import RareClassSampler
from mpcl.data.sampler import NO_CLASS, RareClassDraws, UniformDraws, rank_positions


def uniform(seed=0, stream=0, num_images=7):
    return UniformDraws(num_images, seed=seed, stream=stream)


def rare(seed=0, stream=0):
    counts = np.array([[60, 0, 40], [100, 0, 0], [0, 0, 100], [30, 50, 20]])
    sampler = RareClassSampler(counts, np.full((4, 2), 10), temperature=1.0, min_image_fraction=0.1)
    return RareClassDraws(sampler, seed=seed, stream=stream)


def take(draws, count):
    return [draws[p] for p in range(count)]


def test_every_epoch_shows_every_image_once_in_its_own_order():
    order = [draw.index for draw in take(uniform(), 28)]
    epochs = [tuple(order[i : i + 7]) for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 4  # 7! orders: a chance of about 1 in 800 that two of four agree


def test_a_uniform_draw_is_made_for_no_class():
    assert {draw.rare_class for draw in take(uniform(), 7)} == {NO_CLASS}


@pytest.mark.parametrize("build", [uniform, rare])
def test_a_draw_does_not_depend_on_what_was_drawn_before(build):
    straight = take(build(), 40)
    for p in (33, 3, 21, 20, 3):
        assert build()[p] == straight[p]
    shared = build()
    positions = np.random.default_rng(0).permutation(40).tolist()
    assert [shared[p] for p in positions] == [straight[p] for p in positions]


@pytest.mark.parametrize("build", [uniform, rare])
def test_draws_change_with_seed_and_stream(build):
    runs = [take(build(seed, stream), 30) for seed, stream in ((0, 0), (1, 0), (0, 1))]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert [d.index for d in runs[i]] != [d.index for d in runs[j]]
        assert not {d.seed for d in runs[i]} & {d.seed for d in runs[j]}


@pytest.mark.parametrize("build", [uniform, rare])
def test_every_draw_has_a_seed_of_its_own(build):
    assert len({draw.seed for draw in take(build(), 1000)}) == 1000


def test_rare_class_draws_name_a_class_that_their_image_shows():
    draws = rare()
    for draw in take(draws, 200):
        assert draw.index in draws.sampler.candidates[draw.rare_class]


def test_rare_class_draws_follow_the_probabilities():
    draws = rare()
    classes = [draw.rare_class for draw in take(draws, 2000)]
    frequency = np.bincount(classes, minlength=3) / len(classes)
    np.testing.assert_allclose(frequency, draws.sampler.probabilities, atol=4 * 0.5 / 2000**0.5)


@pytest.mark.parametrize("build", [uniform, rare])
def test_a_stream_has_no_position_before_its_start(build):
    with pytest.raises(ValueError):
        build()[-1]


def test_an_empty_data_set_is_refused():
    with pytest.raises(ValueError, match="num_images"):
        uniform(num_images=0)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_in_their_order_take_the_positions_of_one_process(world_size):
    for iteration in range(4):
        split = [p for r in range(world_size) for p in rank_positions(iteration, 6, r, world_size)]
        assert split == list(range(6 * iteration, 6 * iteration + 6))


@pytest.mark.parametrize(
    ("iteration", "batch_size", "rank", "world_size", "name"),
    [
        (0, 3, 0, 2, "batch_size"),
        (0, 0, 0, 1, "batch_size"),
        (0, 4, 2, 2, "rank"),
        (-1, 4, 0, 2, "iteration"),
    ],
)
def test_positions_out_of_range_are_refused(iteration, batch_size, rank, world_size, name):
    with pytest.raises(ValueError, match=name):
        rank_positions(iteration, batch_size, rank, world_size)
