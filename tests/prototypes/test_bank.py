import math

import pytest
import torch

from mpcl.prototypes.bank import FeatureBank
from mpcl.prototypes.numerics import sample_per_group

C, D = 3, 4


def stored(bank, c):
    """The first channel of what class c holds: the tests number the pixels there."""
    return sorted(bank.features[c, bank.filled[c], 0].tolist())


def numbered(label, start=0):
    """Embeddings (B, D, h, w) whose channels all hold the pixel's number."""
    numbers = torch.arange(label.numel()).view(label.shape) + float(start)
    return numbers.unsqueeze(1).expand(-1, D, -1, -1).clone()


def test_everything_is_stored_where_it_belongs_when_there_is_room():
    bank = FeatureBank(C, 10, D, samples_per_image=10)
    label = torch.tensor([[[0, 0, 1], [3, 1, 0]], [[3, 3, 3], [0, 1, 3]]])
    bank.push_(numbered(label), label)
    assert stored(bank, 0) == [0, 1, 5, 9] and stored(bank, 1) == [2, 4, 10]
    assert stored(bank, 2) == []
    assert bank.fill.tolist() == [4, 3, 0] and bank.cursor.tolist() == [4, 3, 0]
    assert bank.features.nbytes == C * 10 * D * 2  # half precision


def test_the_newest_embeddings_replace_the_oldest_across_the_end_of_the_ring():
    bank = FeatureBank(1, 5, D, samples_per_image=3)
    label = torch.zeros(1, 1, 3, dtype=torch.int64)
    for push in range(4):
        bank.push_(numbered(label, 3 * push), label)
    assert stored(bank, 0) == pytest.approx([*stored(bank, 0)[:2], 9, 10, 11])
    assert all(number in (6, 7, 8) for number in stored(bank, 0)[:2])
    assert bank.cursor.tolist() == [12 % 5] and bank.fill.tolist() == [5]


def test_one_push_larger_than_the_ring_fills_it_with_different_embeddings():
    bank = FeatureBank(C, 4, D, samples_per_image=100)
    label = torch.zeros(2, 5, 5, dtype=torch.int64)
    bank.push_(numbered(label), label)
    assert bank.fill.tolist() == [4, 0, 0] and bank.cursor.tolist() == [0, 0, 0]
    assert len(set(stored(bank, 0))) == 4


def test_no_image_gives_a_class_more_than_its_share():
    bank = FeatureBank(C, 100, D, samples_per_image=6)
    label = torch.zeros(2, 10, 10, dtype=torch.int64)
    label[1, 0, 0] = 1
    bank.push_(numbered(label), label)
    assert bank.fill.tolist() == [12, 1, 0]
    assert sum(number < 100 for number in stored(bank, 0)) == 6


@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e6])
def test_embeddings_not_finite_in_half_precision_never_enter(bad):
    bank = FeatureBank(C, 10, D)
    label = torch.zeros(1, 2, 3, dtype=torch.int64)
    embeddings = numbered(label)
    embeddings[0, 1, 0, 0] = bad
    bank.push_(embeddings, label)
    assert stored(bank, 0) == [1, 2, 3, 4, 5] and bank.features.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 2, 2), (1, 0, 2), (2, 3, 3)])
def test_pushing_nothing_leaves_no_trace(shape):
    bank = FeatureBank(C, 10, D)
    label = torch.full(shape, C)
    bank.push_(torch.randn(shape[0], D, *shape[1:]), label)
    assert (bank.features == 0).all() and (bank.fill == 0).all() and (bank.cursor == 0).all()
    points, valid = bank.sample(4)
    assert not valid.any() and points.isfinite().all()


def test_memory_layout_of_the_embeddings_does_not_matter():
    label = torch.randint(0, C + 1, (2, 4, 5))
    banks = []
    for layout in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        banks.append(FeatureBank(C, 10, D, samples_per_image=3))
        banks[-1].push_(numbered(label).contiguous(memory_format=layout), label)
    assert torch.equal(banks[0].features, banks[1].features)


def test_samples_come_from_the_filled_slots_of_each_class_and_reach_all_of_them():
    torch.manual_seed(0)
    bank = FeatureBank(C, 10, D)
    label = torch.tensor([[[0, 0, 0, 1]]])
    bank.push_(numbered(label), label)
    points, valid = (torch.cat(parts, 1) for parts in zip(*(bank.sample(3) for _ in range(200))))
    assert points.shape == (C, 600, D) and points.dtype == torch.float32
    assert valid[0].all() and valid[1].sum() == 200 and not valid[2].any()
    assert set(points[0, :, 0].tolist()) == {0, 1, 2}
    assert set(points[1][valid[1], 0].tolist()) == {3}
    drawn = torch.cat([bank.sample(2)[0][0, :, 0] for _ in range(300)]).long()
    assert (torch.bincount(drawn) > 160).all()  # 200 expected, standard deviation 11.5


def test_a_class_that_holds_fewer_gives_each_embedding_once():
    bank = FeatureBank(C, 10, D)
    bank.push_(numbered(label := torch.tensor([[[0, 0, 0, 1]]])), label)
    points, valid = bank.sample(7)
    assert valid.sum(1).tolist() == [3, 1, 0]
    assert sorted(points[0, :3, 0].tolist()) == [0, 1, 2] and points[1, 0, 0] == 3


def test_a_draw_that_rounds_up_to_one_still_hits_a_filled_slot(monkeypatch):
    bank = FeatureBank(C, 10, D)
    label = torch.tensor([[[0, 0, 0, 1]]])
    bank.push_(numbered(label) + 1, label)
    monkeypatch.setattr(torch, "rand", torch.ones)
    points, _ = bank.sample(2)
    assert (points[:2] > 0).all()


@pytest.mark.parametrize("name", ["num_classes", "size", "dim", "samples_per_image"])
def test_a_size_of_zero_is_refused(name):
    sizes = {"num_classes": C, "size": 5, "dim": D, "samples_per_image": 2}
    with pytest.raises(ValueError, match=f"{name} is 0"):
        FeatureBank(**(sizes | {name: 0}))


def test_group_samples_are_distinct_members_and_complete_for_small_groups():
    group = torch.tensor([2, 0, 0, 3, 2, 2, 2, 0, -1, 2])  # 3 and -1 are no groups
    index, valid = sample_per_group(group, 3, 3)
    assert index.shape == valid.shape == (3, 3)
    assert sorted(index[0, valid[0]].tolist()) == [1, 2, 7]
    assert not valid[1].any()
    members = index[2, valid[2]].tolist()
    assert len(set(members)) == 3 and (group[members] == 2).all()


def test_group_samples_are_uniform():
    torch.manual_seed(0)
    group = torch.tensor([7, 1, 1, 1, 1, 0])
    hits = torch.zeros(6)
    for _ in range(600):
        index, _valid = sample_per_group(group, 2, 2)
        hits[index[1]] += 1
    # Each of the four members is drawn with probability 1/2: 300 of 600, standard deviation 12.2.
    assert (hits[1:5] - 300).abs().max() < 5 * 12.2
    assert hits[0] == 0


def test_more_samples_than_members_and_no_members_at_all():
    index, valid = sample_per_group(torch.tensor([1, 1]), 2, 10)
    assert index.shape == (2, 2) and valid.tolist() == [[False, False], [True, True]]
    index, valid = sample_per_group(torch.zeros(0, dtype=torch.int64), 2, 10)
    assert index.shape == (2, 0)
