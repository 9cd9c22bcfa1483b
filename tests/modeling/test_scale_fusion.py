import pytest
import torch
import torch.nn.functional as F

from mpcl.modeling.scale_fusion import context_image, fuse_scales, sample_detail_box
from mpcl.structures import Box


def test_context_is_the_mean_of_2x2_pixels():
    images = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(context_image(images), F.avg_pool2d(images, 2))


def test_boxes_are_drawn_from_the_published_offsets():
    torch.manual_seed(0)
    boxes = [sample_detail_box((1024, 1024), (512, 512)) for _ in range(3000)]
    for side in (0, 1):
        starts = {box[side] for box in boxes}
        assert starts == set(range(0, 512, 8))  # 512 itself is never drawn
        assert all(box[side + 2] - box[side] == 512 for box in boxes)
    assert len({box[:2] for box in boxes}) > 1000  # both directions on their own


def test_detail_as_large_as_the_image_is_the_image():
    assert sample_detail_box((64, 128), (64, 128)) == Box(0, 0, 64, 128)
    box = sample_detail_box((64, 128), (96, 96))
    assert (box.top, box.bottom) == (0, 64) and box.right - box.left == 96


@pytest.mark.parametrize("sizes", [((60, 64), (32, 32)), ((64, 64), (32, 36))])
def test_sizes_off_the_grid_are_refused(sizes):
    with pytest.raises(ValueError, match="multiples of 8"):
        sample_detail_box(*sizes)


def slow_fusion(context, detail, attention, box):
    """The equations literally: mask, upsample, paste, add."""
    mask = torch.zeros_like(attention)
    mask[..., box.top // 8 : box.bottom // 8, box.left // 8 : box.right // 8] = 1
    attention = attention * mask

    def up(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    canvas = torch.zeros_like(up(context))
    canvas[..., box.top // 4 : box.bottom // 4, box.left // 4 : box.right // 4] = detail
    return up(attention) * canvas + up((1 - attention) * context)


@pytest.mark.parametrize("box", [Box(0, 0, 32, 32), Box(24, 8, 56, 40), Box(32, 64, 64, 96)])
def test_fusion_follows_the_equations(box):
    context, detail = torch.randn(2, 5, 8, 12), torch.randn(2, 5, 8, 8)
    attention = torch.rand(2, 5, 8, 12)
    found = fuse_scales(context, detail, attention, box)
    torch.testing.assert_close(found, slow_fusion(context, detail, attention, box))


def test_without_a_box_the_detail_covers_everything():
    context, attention = torch.randn(2, 5, 8, 12), torch.rand(2, 5, 8, 12)
    detail = torch.randn(2, 5, 16, 24)
    found = fuse_scales(context, detail, attention)
    torch.testing.assert_close(found, slow_fusion(context, detail, attention, Box(0, 0, 64, 96)))


def test_attention_blends_one_cell_across_the_border_of_the_box():
    # Masked before upsampling: 3/4 just inside and 1/4 just outside, where there is no detail.
    zeros, ones = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    fused = fuse_scales(ones, torch.zeros(1, 1, 8, 8), ones, Box(16, 16, 48, 48))
    assert fused[0, 0, 8, 2:6].tolist() == [1.0, 0.75, 0.25, 0.0]
    assert (fuse_scales(zeros, zeros, ones, Box(16, 16, 48, 48)) == 0).all()


def test_gradients_reach_all_three_parts():
    parts = [torch.rand(1, 2, 8, 8).requires_grad_() for _ in range(3)]
    fuse_scales(*parts, Box(16, 16, 48, 48)).sum().backward()
    assert all(part.grad.abs().sum() > 0 for part in parts)


def test_box_off_the_cells_is_refused():
    assert Box(8, 16, 24, 32).in_cells(8) == Box(1, 2, 3, 4)
    with pytest.raises(ValueError, match="grid of 8 pixels"):
        Box(4, 16, 24, 32).in_cells(8)
