"""ClassMix: how many classes are drawn, from which candidates, and what is pasted."""

import itertools
import math

import pytest
import torch

from mpcl.self_training.class_mix import class_mix, sample_class_mask


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def stripes(labels, height: int = 2, batch: int = 1) -> torch.Tensor:
    """(B, height, len(labels)): one column a label."""
    return torch.tensor(labels).expand(batch, height, -1).contiguous()


def pasted(mask: torch.Tensor, label: torch.Tensor) -> list[set[int]]:
    return [set(one[drawn].tolist()) for one, drawn in zip(label, mask)]


@pytest.mark.parametrize("present", range(1, 7))
def test_half_of_the_classes_rounded_up_are_drawn(present):
    label = stripes(list(range(present)), batch=8)
    for drawn in pasted(sample_class_mask(label, 19), label):
        assert len(drawn) == math.ceil(present / 2)


def test_nineteen_classes_give_ten_and_with_ignored_pixels_still_ten():
    for labels in (list(range(19)), [*range(19), 255]):
        label = stripes(labels)
        assert len(pasted(sample_class_mask(label, 19), label)[0]) == 10


def test_a_class_is_pasted_wholly_or_not_at_all():
    label = torch.randint(0, 5, (4, 16, 16), generator=torch.Generator().manual_seed(0))
    mask = sample_class_mask(label, 5)
    for one, drawn in zip(label, mask):
        for c in range(5):
            assert len(drawn[one == c].unique()) == 1


def test_every_combination_is_equally_likely():
    classes = [0, 3, 7, 255]
    label = stripes(classes, height=1, batch=6000)
    mask = sample_class_mask(label, 19, generator=torch.Generator().manual_seed(0))
    draws = [frozenset(drawn) for drawn in pasted(mask, label)]
    combinations = [frozenset(c) for c in itertools.combinations(classes, 2)]
    counts = [draws.count(c) for c in combinations]
    assert sum(counts) == 6000
    # Chi-squared with 5 degrees of freedom exceeds 20.5 once in a thousand times.
    assert sum((count - 1000) ** 2 / 1000 for count in counts) < 20.5


def test_images_draw_independently():
    label = stripes([0, 1], height=1, batch=1000)
    first = sample_class_mask(label, 2, generator=torch.Generator().manual_seed(0))[:, 0, 0]
    agree = (first[0::2] == first[1::2]).float().mean().item()
    assert abs(agree - 0.5) < 0.1  # 4.5 standard deviations of 500 coins


def test_candidates_come_from_the_whole_batch():
    # Image 0 holds class 0 only, image 1 class 1 only: with one of the two drawn, masks are full
    # or empty, and both happen.
    label = torch.stack((torch.zeros(2, 2), torch.ones(2, 2))).long()
    seen = set()
    for seed in range(40):
        mask = sample_class_mask(label, 2, generator=torch.Generator().manual_seed(seed))
        assert mask.flatten(1).all(1).eq(mask.flatten(1).any(1)).all()
        seen.add(tuple(mask[:, 0, 0].tolist()))
    assert seen == set(itertools.product((False, True), repeat=2))


def test_the_ignore_label_is_a_class_like_any_other():
    label = stripes([4, 255], batch=64)
    drawn = pasted(sample_class_mask(label, 19), label)
    assert all(len(one) == 1 for one in drawn)
    assert {4} in drawn and {255} in drawn


def test_an_ignore_label_below_the_number_of_classes_is_kept_apart():
    label = stripes([0, 1, 2], batch=8)
    for drawn in pasted(sample_class_mask(label, 3, ignore_label=0), label):
        assert len(drawn) == 2


def test_a_batch_without_any_label_is_pasted_wholly():
    assert sample_class_mask(torch.full((2, 4, 4), 255), 19).all()


def test_one_class_is_pasted_wholly():
    assert sample_class_mask(torch.full((2, 4, 4), 18), 19).all()


def test_a_generator_makes_the_draw_repeatable():
    label = stripes(list(range(10)), batch=4)
    draws = [
        sample_class_mask(label, 10, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_mixing_takes_source_where_the_mask_is_true():
    mask = torch.tensor([[[True, False]], [[False, True]]])
    source, target = torch.randn(2, 3, 1, 2), torch.randn(2, 3, 1, 2)
    before = source.clone(), target.clone()
    mixed = class_mix(mask, source, target)
    for b, x in itertools.product(range(2), range(2)):
        expected = source if mask[b, 0, x] else target
        assert torch.equal(mixed[b, :, 0, x], expected[b, :, 0, x])
    assert torch.equal(source, before[0]) and torch.equal(target, before[1])


def test_mixing_labels_and_weights_keeps_their_type():
    mask = torch.tensor([[[True, False]]])
    label = class_mix(mask, torch.tensor([[[255, 255]]]), torch.tensor([[[3, 4]]]))
    assert label.tolist() == [[[255, 4]]] and label.dtype == torch.int64
    weight = class_mix(mask, torch.ones(1, 1, 2), torch.full((1, 1, 2), 0.25))
    assert weight.tolist() == [[[1.0, 0.25]]]


@pytest.mark.parametrize("batch", [1, 2])
def test_mixing_refuses_shapes_that_would_broadcast_wrongly(batch):
    image = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ValueError, match="must agree"):
        class_mix(torch.ones(batch, 4, 3, dtype=torch.bool), image, image)
    with pytest.raises(ValueError, match="must agree"):
        class_mix(torch.ones(2, 4, 4, dtype=torch.bool), image[:batch, :1], image)
    with pytest.raises(ValueError, match="must agree"):
        class_mix(torch.ones(1, 1, 4, 4, dtype=torch.bool), image, image)


def test_a_label_map_without_batch_is_refused():
    with pytest.raises(ValueError, match=r"label must be \(B, H, W\), got \(4, 4\)"):
        sample_class_mask(torch.zeros(4, 4, dtype=torch.int64), 19)
