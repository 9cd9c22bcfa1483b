"""Hidden blocks, and which images they hide."""

import pytest
import torch

from mpcl.self_training.masking import Masking, hide_blocks
from mpcl.structures import View


def test_blocks_are_hidden_whole_and_the_rest_is_untouched():
    images = torch.rand(2, 3, 64, 96) + 1
    masked = hide_blocks(images, block_size=16, ratio=0.5)
    hidden = masked == 0
    assert torch.equal(masked[~hidden], images[~hidden])
    blocks = hidden.view(2, 3, 4, 16, 6, 16).permute(0, 2, 4, 1, 3, 5).flatten(3)
    assert (blocks.all(-1) | ~blocks.any(-1)).all()  # whole blocks, in all channels
    assert not torch.equal(hidden[0], hidden[1])  # each image has its own
    assert images.min() >= 1  # the argument is not written to


@pytest.mark.parametrize(("ratio", "tolerance"), [(0.0, 0), (0.7, 0.04), (1.0, 0)])
def test_ratio_is_the_hidden_share(ratio, tolerance):
    torch.manual_seed(0)
    images = torch.ones(8, 3, 512, 512)
    hidden = (hide_blocks(images, block_size=32, ratio=ratio) == 0).float().mean().item()
    # 2048 blocks: a standard deviation of 0.01.
    assert hidden == pytest.approx(ratio, abs=tolerance)


def test_grid_is_rounded_half_to_even_where_sizes_do_not_divide():
    # 720 / 32 = 22.5 -> 22 rows, as in the original.
    masked = hide_blocks(torch.ones(1, 1, 720, 64), block_size=32, ratio=0.5)
    changes = (masked[0, 0, 1:, 0] != masked[0, 0, :-1, 0]).nonzero().flatten() + 1
    edges = [-(-i * 720 // 22) for i in range(23)]
    assert set(changes.tolist()) <= set(edges)


@pytest.mark.parametrize(
    ("block_size", "ratio", "named"), [(8, 1.5, "ratio"), (8, -0.1, "ratio"), (100, 0.5, "block")]
)
def test_bad_arguments_are_named(block_size, ratio, named):
    with pytest.raises(ValueError, match=named):
        hide_blocks(torch.ones(1, 3, 32, 32), block_size=block_size, ratio=ratio)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("images", ["target", "pair"])
def test_masked_view_has_the_labels_of_what_it_hides(images, augment):
    source = View.of_source(torch.ones(2, 3, 32, 32), torch.randint(0, 19, (2, 32, 32)))
    everywhere = torch.ones(2, 32, 32, dtype=torch.bool)
    target = View.of_target(torch.full((2, 3, 32, 32), 2.0), everywhere, everywhere)
    target.label, target.weight = torch.randint(0, 19, (2, 32, 32)), torch.rand(2, 32, 32)
    masking = Masking(block_size=8, ratio=0.5, images=images, augment=augment)
    masked = masking(source, target, lambda images: images + 100)
    hidden, shown = masked.images == 0, torch.full((2, 3, 32, 32), 2.0)
    if images == "pair":  # the first image of each domain
        shown[0] = 1.0
        source.label[1], source.weight[1] = target.label[0], target.weight[0]
    labelled = source if images == "pair" else target
    assert hidden.any()
    assert torch.equal(masked.images[~hidden], (shown + 100 * augment)[~hidden])
    assert torch.equal(masked.label, labelled.label)
    assert torch.equal(masked.weight, labelled.weight)
