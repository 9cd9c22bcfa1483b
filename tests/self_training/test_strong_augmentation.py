"""Strong augmentation: colour operations, blur, and what is drawn how often."""

import colorsys
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from mpcl.self_training.strong_augmentation import (
    StrongAugmentation,
    blur_kernel_size,
    gaussian_blur,
    jitter_color,
)

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def augmentation(**changes) -> StrongAugmentation:
    return StrongAugmentation(MEAN, STD, **changes)


def normalised(rgb: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) in [0, 1] -> network input."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    return (rgb * 255 - mean) / std


def pixels(*rgb) -> torch.Tensor:
    """RGB triples -> (3, 1, N) float64."""
    return torch.tensor(rgb, dtype=torch.float64).T[:, None]


def random_rgb(*shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        # Values of the reference implementation (kornia 0.5.8), 1.1, 0.9, 1.15, -0.07.
        (
            (BRIGHTNESS, CONTRAST, SATURATION, HUE),
            pixels(
                (0.175502, 0.68679, 0.9),
                (0.54, 0.54, 0.54),
                (0.81, 0.085502, 0.596791),
                (0.000001, 0.378001, 0.9),
            ),
        ),
        (
            (HUE, CONTRAST, BRIGHTNESS, SATURATION),
            pixels(
                (0.185502, 0.69679, 0.91),
                (0.55, 0.55, 0.55),
                (0.82, 0.095502, 0.606791),
                (0, 0.42, 1),
            ),
        ),
    ],
)
def test_jitter_agrees_with_the_reference(order, expected):
    rgb = pixels((0.2, 0.4, 0.9), (0.5, 0.5, 0.5), (0.8, 0.1, 0.3), (0, 0, 1))
    result = jitter_color(rgb, (1.1, 0.9, 1.15, -0.07), order)
    torch.testing.assert_close(result, expected, atol=1.1e-6, rtol=0)


def test_brightness_adds_and_contrast_multiplies_both_clamped():
    rgb = pixels((0.05, 0.5, 0.95))
    for factors, order, expected in (
        ((0.9, 1, 1, 0), [BRIGHTNESS], (0, 0.4, 0.85)),
        ((1.1, 1, 1, 0), [BRIGHTNESS], (0.15, 0.6, 1)),
        ((1, 1.2, 1, 0), [CONTRAST], (0.06, 0.6, 1)),
    ):
        torch.testing.assert_close(jitter_color(rgb, factors, order), pixels(expected))


@pytest.mark.parametrize("turn", [-0.2, -1 / 6, 0.0, 0.1, 0.2])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.2])
def test_saturation_and_hue_agree_with_colorsys(turn, scale):
    rgb = random_rgb(3, 8, 8)
    result = jitter_color(rgb, (1, 1, scale, turn), (SATURATION, HUE))
    for i, j in np.ndindex(8, 8):
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb[:, i, j].tolist())
        expected = colorsys.hsv_to_rgb((hue + turn) % 1, min(scale * saturation, 1), value)
        # The reference divides by V + 1e-6, colorsys by V.
        np.testing.assert_allclose(result[:, i, j], expected, atol=3e-6)


def test_corners_of_the_colour_cube_survive_a_third_of_a_turn():
    # Red to green, yellow to cyan, ...; grey, black and white stay.
    before = pixels((1, 0, 0), (1, 1, 0), (0, 1, 0), (0.5, 0.5, 0.5), (0, 0, 0), (1, 1, 1))
    after = pixels((0, 1, 0), (0, 1, 1), (0, 0, 1), (0.5, 0.5, 0.5), (0, 0, 0), (1, 1, 1))
    result = jitter_color(before, (1, 1, 1, 1 / 3), [HUE])
    torch.testing.assert_close(result, after, atol=2e-6, rtol=0)


def test_jitter_without_strength_gives_the_image_back():
    images = normalised(random_rgb(2, 3, 8, 8).float())
    result = augmentation(jitter_probability=1, jitter_strength=0, blur_probability=0)(images)
    torch.testing.assert_close(result, images, atol=1e-4, rtol=0)


def test_jitter_works_on_pixels_between_0_and_1_and_normalises_again():
    # Grey: saturation and hue do nothing, so only b - 1 and c remain, in either order: the darkest
    # is 0.8 * 0.5 - 0.2, the brightest 1.2 * (0.5 + 0.2).
    grey = torch.full((64, 3, 2, 2), 0.5)
    images = normalised(grey)
    result = augmentation(jitter_probability=1, blur_probability=0)(images)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    rgb = (result * std + mean) / 255
    torch.testing.assert_close(rgb, rgb[:, :1].expand_as(rgb), atol=1e-5, rtol=0)  # still grey
    assert rgb.min() >= 0.2 - 1e-5
    assert rgb.max() <= 0.84 + 1e-5
    assert rgb.min() < 0.4 and rgb.max() > 0.6


def test_factors_and_order_differ_between_images():
    images = normalised(random_rgb(1, 3, 4, 4).float()).expand(6, 3, 4, 4)
    result = augmentation(jitter_probability=1, blur_probability=0)(images)
    for i in range(1, 6):
        assert not torch.allclose(result[0], result[i], atol=1e-3)


def test_blur_differs_between_images_in_its_width():
    images = torch.zeros(4, 3, 31, 31)
    images[:, :, 15, 15] = 1
    result = augmentation(jitter_probability=0, blur_probability=1)(images)
    peaks = result[:, 0, 15, 15]
    assert len(set(peaks.tolist())) == 4
    torch.testing.assert_close(result[:, 0], result[:, 2])  # same for the channels of an image


def test_blur_has_the_published_range_of_widths():
    images = torch.zeros(400, 3, 101, 101)  # so large that the kernel cuts nothing off
    images[:, :, 50, 50] = 1
    torch.manual_seed(0)
    rows = augmentation(jitter_probability=0, blur_probability=1)(images)[:, 0].sum(1)
    sigma = (rows * torch.arange(-50, 51) ** 2).sum(1).sqrt()  # narrow ones come out narrower
    assert 1.1 < sigma.max() < 1.16 and sigma.min() < 0.05
    # Uniform: (1.15 - 0.8) / (1.15 - 0.15), within five standard deviations.
    assert abs((sigma > 0.8).float().mean() - 0.35) < 5 * math.sqrt(0.35 * 0.65 / 400)


def test_decisions_are_shared_by_the_batch_with_probabilities_of_four_fifths_and_one_half():
    # Brightness alone tells of the jitter, the height of a single bright pixel of the blur.
    images = normalised(torch.full((2, 3, 21, 21), 0.5))
    images[:, :, 10, 10] += 1
    augment = augmentation()
    torch.manual_seed(0)
    jittered, blurred, calls = 0, 0, 400
    for _ in range(calls):
        result = augment(images)
        corner = (result[:, :, 0, 0] - images[:, :, 0, 0]).abs().amax(1) > 1e-4
        neighbour = (result[:, :, 10, 11] - result[:, :, 0, 0]).abs().amax(1) > 1e-12
        assert corner[0] == corner[1]
        jittered += int(corner[0])
        blurred += int(neighbour.any())
    # Five standard deviations. (A sigma near its lower end blurs invisibly in float32: 0.15 has a
    # neighbouring tap of 2e-10.)
    assert abs(jittered / calls - 0.8) < 5 * math.sqrt(0.8 * 0.2 / calls)
    assert abs(blurred / calls - 0.5) < 5 * math.sqrt(0.5 * 0.5 / calls)


def test_draws_depend_on_the_default_cpu_generator_alone():
    images = normalised(random_rgb(2, 3, 16, 16).float())
    augment = augmentation(jitter_probability=1, blur_probability=1)
    torch.manual_seed(3)
    first = augment(images)
    np.random.seed(1)
    torch.manual_seed(3)
    assert torch.equal(augment(images), first)
    assert not torch.equal(augment(images), first)


def test_without_jitter_and_blur_nothing_happens_and_with_them_not_to_the_argument():
    images = normalised(random_rgb(2, 3, 24, 24).float())
    before = images.clone()
    assert torch.equal(augmentation(jitter_probability=0, blur_probability=0)(images), images)
    assert not torch.equal(augmentation(jitter_probability=1, blur_probability=1)(images), before)
    assert torch.equal(images, before)


def test_autocast_does_not_lower_the_precision():
    images = normalised(random_rgb(2, 3, 32, 32).float())
    augment = augmentation(jitter_probability=1, blur_probability=1)
    torch.manual_seed(0)
    expected = augment(images)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(augment(images), expected)


def test_blur_kernel_sizes_of_the_published_crops():
    assert [blur_kernel_size(n) for n in (512, 640, 768, 1024)] == [51, 63, 77, 103]
    assert all(blur_kernel_size(n) % 2 == 1 for n in range(1, 2000))


def test_blur_of_a_point_has_the_taps_of_the_reference():
    # sigma 0.65 on 512 pixels (51 taps): the two-dimensional kernel from its centre along a row.
    image = torch.zeros(1, 1, 101, 512, dtype=torch.float64)
    image[0, 0, 50, 256] = 1
    row = gaussian_blur(image, torch.tensor([0.65], dtype=torch.float64))[0, 0, 50, 256:260]
    expected = torch.tensor([0.376338, 0.115245, 0.003309, 0.000009], dtype=torch.float64)
    torch.testing.assert_close(row, expected, atol=6e-7, rtol=0)


def test_blur_agrees_with_scipy_up_to_the_borders():
    images = random_rgb(2, 3, 33, 61)
    sigma = torch.tensor([0.3, 1.1])
    result = gaussian_blur(images, sigma)
    for b, c in np.ndindex(2, 3):
        expected = images[b, c].numpy()
        for axis, length in enumerate((33, 61)):
            reach = blur_kernel_size(length) // 2
            offset = np.arange(-reach, reach + 1)
            taps = np.exp(-(offset**2) / (2 * sigma[b].item() ** 2))
            # scipy's "mirror" is torch's "reflect": the border pixel is not repeated.
            expected = ndimage.convolve1d(expected, taps / taps.sum(), axis=axis, mode="mirror")
        np.testing.assert_allclose(result[b, c], expected, rtol=1e-10)


@pytest.mark.parametrize("size", [(1, 1), (1, 30), (2, 3), (11, 21), (29, 7)])
def test_small_images_can_be_blurred(size):
    images = torch.ones(2, 3, *size)
    torch.testing.assert_close(gaussian_blur(images, torch.tensor([0.2, 1.1])), images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jitter_probability": 1.2}, r"jitter_probability must be in \[0, 1.0\], got 1.2"),
        ({"jitter_strength": 0.6}, r"jitter_strength must be in \[0, 0.5\], got 0.6"),
        ({"blur_probability": -1}, "blur_probability"),
    ],
)
def test_bad_arguments_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        augmentation(**change)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(3, 8, 8\)"):
        augmentation()(torch.zeros(3, 8, 8))
