import pytest
import torch

from mpcl.self_training.masking import hide_blocks


def test_blocks_are_hidden_whole_and_the_rest_is_untouched():
    images = torch.rand(2, 3, 64, 96) + 1
    masked = hide_blocks(images, block_size=16, ratio=0.5)
    hidden = masked == 0
    assert torch.equal(masked[~hidden], images[~hidden])
    blocks = hidden.view(2, 3, 4, 16, 6, 16).permute(0, 2, 4, 1, 3, 5).flatten(3)
    assert (blocks.all(-1) | ~blocks.any(-1)).all()  # whole blocks, in all channels
    assert not torch.equal(hidden[0], hidden[1])  # each image has its own
    assert images.min() >= 1  # the argument is not written to


def test_ratio_is_the_hidden_share():
    images = torch.ones(8, 3, 512, 512)
    hidden = (hide_blocks(images, block_size=32, ratio=0.7) == 0).float().mean().item()
    # 2048 blocks: a standard deviation of 0.01.
    assert hidden == pytest.approx(0.7, abs=0.04)


def test_ratios_zero_and_one_hide_nothing_and_everything():
    images = torch.rand(1, 3, 32, 32) + 1
    assert torch.equal(hide_blocks(images, block_size=8, ratio=0.0), images)
    assert (hide_blocks(images, block_size=8, ratio=1.0) == 0).all()


def test_grid_is_rounded_half_to_even_where_sizes_do_not_divide():
    # 720 / 32 = 22.5 -> 22 rows, as in the original.
    masked = hide_blocks(torch.ones(1, 1, 720, 64), block_size=32, ratio=0.5)
    changes = (masked[0, 0, 1:, 0] != masked[0, 0, :-1, 0]).nonzero().flatten() + 1
    edges = [-(-i * 720 // 22) for i in range(23)]
    assert set(changes.tolist()) <= set(edges)


def test_generator_decides_alone():
    images = torch.ones(2, 3, 32, 32)
    first, second = (
        hide_blocks(images, block_size=4, ratio=0.5, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize(
    "block_size, ratio, named", [(8, 1.5, "ratio"), (8, -0.1, "ratio"), (100, 0.5, "block_size")]
)
def test_bad_arguments_are_named(block_size, ratio, named):
    with pytest.raises(ValueError, match=named):
        hide_blocks(torch.ones(1, 3, 32, 32), block_size=block_size, ratio=ratio)
