import pytest
import torch
import torch.nn.functional as F

from mpcl.modeling.inference import sliding_window, whole_image


def network(images: torch.Tensor) -> torch.Tensor:
    """Stride-4 logits of two classes that depend on the place, as a padded network's do."""
    pooled = F.avg_pool2d(images, 4, ceil_mode=True)
    place = torch.arange(pooled.shape[3], dtype=images.dtype)
    return torch.stack([pooled.sum(1) + place, pooled[:, 0] * place], 1)


def slow_sliding_window(images, crop, stride):
    """One window of one image at a time, one pixel's votes counted one by one."""
    batch, _, height, width = images.shape
    crop = (min(crop[0], height), min(crop[1], width))
    total = torch.zeros(batch, 2, height, width, dtype=images.dtype)
    hits = torch.zeros(height, width, dtype=images.dtype)
    rows = max(height - crop[0] + stride[0] - 1, 0) // stride[0] + 1
    columns = max(width - crop[1] + stride[1] - 1, 0) // stride[1] + 1
    for i in range(rows):
        for j in range(columns):
            bottom, right = (
                min(i * stride[0] + crop[0], height),
                min(j * stride[1] + crop[1], width),
            )
            y, x = slice(bottom - crop[0], bottom), slice(right - crop[1], right)
            hits[y, x] += 1
            for b in range(batch):
                logits = network(images[b : b + 1, :, y, x])
                total[b, :, y, x] += F.interpolate(
                    logits, size=crop, mode="bilinear", align_corners=False
                )[0]
    assert (hits > 0).all()
    return total / hits


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
@pytest.mark.parametrize(
    "size, crop, stride",
    [
        ((32, 64), (32, 32), (16, 16)),  # exact fit
        ((33, 61), (16, 24), (9, 10)),  # shifted back in both directions
        ((20, 70), (32, 32), (16, 16)),  # lower than the crop
        ((20, 20), (32, 32), (16, 16)),  # smaller than the crop
        ((32, 64), (16, 16), (16, 16)),  # no overlap
    ],
)
def test_windows_average_as_in_the_slow_loop(size, crop, stride, batch_size):
    images = torch.randn(3, 3, *size, dtype=torch.float64)
    found = sliding_window(network, images, crop=crop, stride=stride, batch_size=batch_size)
    torch.testing.assert_close(found, slow_sliding_window(images, crop, stride))


def test_whole_image_is_one_bilinear_resize():
    images = torch.randn(2, 3, 18, 30)
    expected = F.interpolate(network(images), size=(18, 30), mode="bilinear", align_corners=False)
    torch.testing.assert_close(whole_image(network, images), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "size, corners",
    [
        ((1024, 2048), [(0, 0), (0, 512), (0, 1024)]),  # Cityscapes
        ((1080, 1920), [(0, 0), (0, 512), (0, 896), (56, 0), (56, 512), (56, 896)]),  # ACDC
    ],
)
def test_windows_lie_where_the_published_evaluation_puts_them(size, corners):
    rows, columns = torch.meshgrid(*map(torch.arange, size), indexing="ij")
    images = torch.stack([rows, columns])[None].float()
    seen = []

    def spy(windows):
        seen.extend((int(w[0, 0, 0]), int(w[1, 0, 0])) for w in windows)
        return windows[:, :1, ::256, ::256]

    sliding_window(spy, images, crop=(1024, 1024), stride=(512, 512), batch_size=2)
    assert seen == corners


def test_batches_run_through_the_images_of_a_window_first():
    # Each image and column has its own value, so a batch tells which windows it holds.
    images = (torch.arange(2)[:, None] * 100 + torch.arange(12)).reshape(2, 1, 1, 12)
    batches = []

    def spy(windows):
        batches.append(windows[:, 0, 0, 0].tolist())
        return windows.float()

    sliding_window(
        spy, images.expand(2, 1, 4, 12).float(), crop=(4, 4), stride=(4, 4), batch_size=4
    )
    assert batches == [[0, 100, 4, 104], [8, 108]]


def test_half_precision_logits_are_averaged_in_float32():
    images = torch.randn(1, 3, 16, 40)

    def half(windows):
        return network(windows).bfloat16()

    assert whole_image(half, images).dtype == torch.float32
    found = sliding_window(half, images, crop=(16, 16), stride=(8, 8), batch_size=3)
    assert found.dtype == torch.float32
    exact = slow_sliding_window(images, (16, 16), (8, 8))
    assert (found - exact).abs().max() < 0.02 * exact.abs().max()


def test_bad_arguments_are_named():
    images = torch.randn(1, 3, 16, 16)
    with pytest.raises(ValueError, match="batch_size must be positive, got 0"):
        sliding_window(network, images, crop=(8, 8), stride=(4, 4), batch_size=0)
    for stride in ((0, 4), (4, 9), (-1, 4)):
        with pytest.raises(ValueError, match="stride"):
            sliding_window(network, images, crop=(8, 8), stride=stride, batch_size=1)
    with pytest.raises(ValueError, match="images"):
        sliding_window(network, images[:0], crop=(8, 8), stride=(4, 4), batch_size=1)
