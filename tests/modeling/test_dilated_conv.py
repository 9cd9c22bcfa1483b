"""The convolution by phases is torch's dilated one."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcl.modeling.dilated_conv import DilatedDepthwiseConv


@settings(deadline=None, max_examples=30)
@given(
    dilation=st.integers(1, 9),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    channels_last=st.booleans(),
)
def test_equals_the_plain_convolution_with_its_gradients(dilation, height, width, channels_last):
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    conv = DilatedDepthwiseConv(3, dilation).double()
    grid = torch.randn(2, 3, height, width, dtype=torch.double)
    mine = grid.contiguous(memory_format=layout).requires_grad_()
    plain, weight = grid.clone().requires_grad_(), conv.weight.detach().clone().requires_grad_()
    expected = F.conv2d(plain, weight, padding=dilation, dilation=dilation, groups=3)
    out = conv(mine)
    torch.testing.assert_close(out, expected)
    direction = torch.randn_like(expected)
    gradients = torch.autograd.grad(out, (mine, conv.weight), direction)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, (plain, weight), direction))


def test_trains_after_it_has_predicted():
    conv, grid = DilatedDepthwiseConv(3, 5), torch.randn(1, 3, 11, 13)
    with torch.inference_mode():
        expected = conv(grid)
    found = conv(grid)
    found.sum().backward()
    assert torch.equal(found, expected) and conv.weight.grad.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_in_the_precisions_of_training(dtype):
    torch.manual_seed(0)
    conv = DilatedDepthwiseConv(16, 6).to(dtype)
    grid = torch.randn(2, 16, 17, 23).to(dtype)
    expected = F.conv2d(grid, conv.weight, padding=6, dilation=6, groups=16)
    torch.testing.assert_close(conv(grid), expected)


def test_a_traced_network_serves_other_sizes_than_the_one_it_was_traced_with():
    conv = DilatedDepthwiseConv(4, 3)
    traced = torch.jit.trace(conv, torch.randn(1, 4, 9, 9))
    grid = torch.randn(2, 4, 14, 11)
    torch.testing.assert_close(traced(grid), conv(grid))
