import numpy as np
import pytest

from mpcl.data.rare_class import RareClassSampler
from mpcl.data.sampler import RareClassDraws, SharedDraws, UniformDraws, rank_positions


def uniform(seed=0, stream=0, num_images=7):
    return UniformDraws(num_images, seed=seed, stream=stream)


def rare(seed=0, stream=0):
    counts = np.array([[60, 0, 40], [100, 0, 0], [0, 0, 100], [30, 50, 20]])
    sampler = RareClassSampler(counts, np.full((4, 2), 10), temperature=1.0, min_image_fraction=0.1)
    return RareClassDraws(sampler, seed=seed, stream=stream)


def shared(seed=0, stream=0):
    parts = [uniform(seed, stream), rare(seed, stream), uniform(seed, stream, num_images=2)]
    shares = [0.25, 0.5, 0.25]
    return SharedDraws(parts=parts, sizes=[7, 4, 2], shares=shares, seed=seed, stream=stream)


def take(draws, count):
    return [draws.draw(p) for p in range(count)]


def test_every_epoch_shows_every_image_once_in_its_own_order():
    order = [draw.index for draw in take(uniform(), 28)]
    epochs = [tuple(order[i : i + 7]) for i in range(0, 28, 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == 4  # 7! orders: a chance of about 1 in 800 that two of four agree


def test_sets_are_drawn_in_their_shares_and_each_as_by_itself():
    draws = take(shared(), 2000)
    number = [0] * 7 + [1] * 4 + [2] * 2
    drawn = np.bincount([number[draw.index] for draw in draws])
    # Binomial deviations of 2000 draws: 19.4 and 22.4; four of them.
    assert (abs(drawn - [500, 1000, 500]) < [78, 90, 78]).all()
    assert {draw.index for draw in draws} == {*range(7), 7, 8, 9, 10, 11, 12}
    alone = take(rare(), 2000)
    for position, draw in enumerate(draws):
        if number[draw.index] == 1:
            assert (draw.index - 7, draw.rare_class) == (
                alone[position].index,
                alone[position].rare_class,
            )
    other = {number[shared().draw(5, attempt).index] for attempt in range(1, 20)}
    assert other == {number[draws[5].index]}


def test_the_probability_of_each_image_is_that_of_the_draws():
    sampler = rare().sampler
    drawn = np.bincount([draw.index for draw in take(rare(), 4000)], minlength=4)
    assert sampler.image_probabilities.sum() == pytest.approx(1)
    np.testing.assert_allclose(drawn / 4000, sampler.image_probabilities, atol=4 * 0.008)


@pytest.mark.parametrize("build", [uniform, rare, shared])
def test_a_draw_does_not_depend_on_what_was_drawn_before(build):
    straight = take(build(), 40)
    for p in (33, 3, 21, 20, 3):
        assert build().draw(p) == straight[p]
    one = build()
    positions = np.random.default_rng(0).permutation(40).tolist()
    assert [one.draw(p) for p in positions] == [straight[p] for p in positions]


@pytest.mark.parametrize("build", [uniform, rare])
def test_draws_change_with_seed_and_stream(build):
    runs = [take(build(seed, stream), 30) for seed, stream in ((0, 0), (1, 0), (0, 1))]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert [d.index for d in runs[i]] != [d.index for d in runs[j]]
        assert not {d.seed for d in runs[i]} & {d.seed for d in runs[j]}
    assert len({draw.seed for draw in take(build(), 1000)}) == 1000


def test_rare_class_draws_name_a_class_that_their_image_shows():
    draws = rare()
    for draw in take(draws, 200):
        assert draw.index in draws.sampler.candidates[draw.rare_class]


@pytest.mark.parametrize("build", [uniform, rare])
def test_a_stream_has_no_position_before_its_start(build):
    with pytest.raises(ValueError):
        build().draw(-1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_ranks_in_their_order_take_the_positions_of_one_process(world_size):
    for iteration in range(4):
        split = [p for r in range(world_size) for p in rank_positions(iteration, 6, r, world_size)]
        assert split == list(range(6 * iteration, 6 * iteration + 6))


@pytest.mark.parametrize(("batch_size", "world_size"), [(3, 2), (0, 1)])
def test_a_batch_that_the_ranks_cannot_share_is_refused(batch_size, world_size):
    with pytest.raises(ValueError, match="batch_size"):
        rank_positions(0, batch_size, 0, world_size)


def test_which_set_is_drawn_changes_with_seed_and_stream():
    number = [0] * 7 + [1] * 4 + [2] * 2
    orders = [
        tuple(number[draw.index] for draw in take(shared(seed, stream), 40))
        for seed, stream in ((0, 0), (1, 0), (0, 1))
    ]
    assert len(set(orders)) == 3  # of 3 ** 40: else source and target would come in step
