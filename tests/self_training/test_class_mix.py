"""ClassMix: how many classes are drawn, from which candidates, and what is pasted."""

import itertools
import math

import pytest
import torch

from mpcl.self_training.class_mix import class_mix, sample_class_mask
from mpcl.structures import View


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def stripes(labels, height: int = 2, batch: int = 1) -> torch.Tensor:
    """(B, height, len(labels)): one column a label."""
    return torch.tensor(labels).expand(batch, height, -1).contiguous()


def drawn(label: torch.Tensor, num_classes: int) -> list[set[int]]:
    mask = sample_class_mask(label, num_classes)
    return [set(one[pasted].tolist()) for one, pasted in zip(label, mask)]


@pytest.mark.parametrize(
    ("labels", "number"),
    [
        *((range(present), math.ceil(present / 2)) for present in (*range(1, 7), 19)),
        ([*range(19), 255], 10),  # the ignore label is a class like any other
        ([18], 1),
        ([255], 1),  # a batch without any label is pasted wholly
    ],
)
def test_half_of_the_classes_rounded_up_are_drawn(labels, number):
    label = stripes(list(labels), batch=8)
    assert [len(one) for one in drawn(label, 19)] == [number] * 8


def test_a_class_is_pasted_wholly_or_not_at_all():
    label = torch.randint(0, 5, (4, 16, 16))
    for one, mask in zip(label, sample_class_mask(label, 5)):
        assert all(len(mask[one == c].unique()) == 1 for c in range(5))


def test_every_combination_is_equally_likely():
    classes = [0, 3, 7, 255]
    label = stripes(classes, height=1, batch=6000)
    draws = [frozenset(one) for one in drawn(label, 19)]
    counts = [draws.count(frozenset(c)) for c in itertools.combinations(classes, 2)]
    assert sum(counts) == 6000
    # Chi-squared with 5 degrees of freedom exceeds 20.5 once in a thousand times.
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 20.5
    # Neighbours draw independently: they agree in a sixth, here within 4.5 standard deviations.
    agree = sum(first == second for first, second in zip(draws[::2], draws[1::2])) / 3000
    assert abs(agree - 1 / 6) < 0.03


def test_candidates_come_from_the_whole_batch():
    # Image 0 holds class 0 only, image 1 class 1 only: with one of the two drawn, masks are full
    # or empty, and both happen.
    label = torch.stack((torch.zeros(2, 2), torch.ones(2, 2))).long()
    seen = set()
    for _ in range(40):
        mask = sample_class_mask(label, 2).flatten(1)
        assert torch.equal(mask.all(1), mask.any(1))
        seen.add(tuple(mask[:, 0].tolist()))
    assert seen == set(itertools.product((False, True), repeat=2))


def test_mixing_takes_all_that_is_known_of_a_pixel_from_where_the_mask_says():
    mask = torch.rand(2, 4, 5) > 0.5
    source = View.of_source(torch.randn(2, 3, 4, 5), torch.randint(0, 19, (2, 4, 5)))
    source.label[:, 0], source.trusted[:, 0] = 255, False
    target = View.of_target(torch.randn(2, 3, 4, 5), *[torch.ones(2, 4, 5, dtype=torch.bool)] * 2)
    target.label, target.weight = target.label - 252, target.weight / 4
    before = [view.each(torch.clone) for view in (source, target)]
    mixed = class_mix(mask, source, target)
    for name, found in vars(mixed).items():
        theirs, ours = (getattr(view, name) for view in (source, target))
        assert found.dtype == ours.dtype == theirs.dtype
        for b, y, x in itertools.product(range(2), range(4), range(5)):
            expected = theirs if mask[b, y, x] else ours
            assert torch.equal(found[b, ..., y, x], expected[b, ..., y, x]), name
    assert torch.equal(mixed.from_source, mask)
    for view, copy in zip((source, target), before):
        assert all(torch.equal(value, vars(copy)[name]) for name, value in vars(view).items())


def test_a_label_map_without_batch_is_refused():
    with pytest.raises(ValueError, match=r"label must be \(B, H, W\), got \(4, 4\)"):
        sample_class_mask(torch.zeros(4, 4, dtype=torch.int64), 19)
