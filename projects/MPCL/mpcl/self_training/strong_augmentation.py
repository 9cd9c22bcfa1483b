"""Colour jitter and Gaussian blur of a batch of mixed images, on the device of the batch.

Legend: B images, C channels, (H, W) pixels.

The definitions are those of kornia 0.5.8, which the published models were trained with: brightness
adds, contrast multiplies without looking at the mean, saturation and hue act in HSV. Other
libraries define them otherwise.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_BLUR_SIGMA = (0.15, 1.15)  # range of the Gaussian's standard deviation, pixels


class StrongAugmentation:
    """Randomly jitters the colours of a batch and randomly blurs it. Labels stay as they are.

    Whether to jitter and whether to blur is decided once a call, for all images; how much, and in
    which order the four colour operations run, for each image anew. All draws come from torch's
    default CPU generator: a run that reseeds it every iteration resumes exactly, and the host never
    waits for the device.

    Source: DACS, arXiv:2007.08702, with the settings of DAFormer, arXiv:2111.14887.

    Args:
        pixel_mean, pixel_std: three values each, of the normalisation (pixel - mean) / std with
            pixels in [0, 255], RGB; on the device of the batches, to be copied there only once.
        jitter_probability: of the colour jitter. (The peers write 0.2 for "a uniform draw exceeds
            0.2": 0.8.)
        jitter_strength: s in [0, 0.5]. Brightness, contrast and saturation factors are uniform in
            [1 - s, 1 + s], the turn of the hue in [-s, s] of a full circle.
        blur_probability: of the blur, which acts on the normalised image, after the jitter.
    Raises: ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        pixel_mean: Sequence[float] | Tensor,
        pixel_std: Sequence[float] | Tensor,
        *,
        jitter_probability: float = 0.8,
        jitter_strength: float = 0.2,
        blur_probability: float = 0.5,
    ) -> None:
        for name, value, limit in (
            ("jitter_probability", jitter_probability, 1.0),
            ("jitter_strength", jitter_strength, 0.5),
            ("blur_probability", blur_probability, 1.0),
        ):
            if not 0.0 <= value <= limit:
                raise ValueError(f"{name} must be in [0, {limit}], got {value}")
        self.pixel_mean = torch.as_tensor(pixel_mean).reshape(3, 1, 1)
        self.pixel_std = torch.as_tensor(pixel_std).reshape(3, 1, 1)
        self.jitter_probability = jitter_probability
        self.jitter_strength = jitter_strength
        self.blur_probability = blur_probability

    @classmethod
    def from_config(cls, cfg: Any) -> "StrongAugmentation":
        st = cfg.SELF_TRAINING
        return cls(
            torch.tensor(cfg.MODEL.PIXEL_MEAN, device=cfg.MODEL.DEVICE),
            torch.tensor(cfg.MODEL.PIXEL_STD, device=cfg.MODEL.DEVICE),
            jitter_probability=st.JITTER_PROBABILITY,
            jitter_strength=st.JITTER_STRENGTH,
            blur_probability=st.BLUR_PROBABILITY,
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Augments (B, 3, H, W) normalised float32 (or float64) images.

        Returns: Images of the same shape and type, without gradient. The argument is never written
            to; it is itself the result where the draw was to do nothing.
        Raises: ValueError: ``images`` is no batch of three-channel images.
        """
        if images.dim() != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be (B, 3, H, W), got {tuple(images.shape)}")
        jitter, blur = torch.rand(2).tolist()
        # Under autocast the blur would round the images to half precision.
        with torch.autocast(images.device.type, enabled=False):
            if jitter < self.jitter_probability:
                images = self._jitter(images)
            if blur < self.blur_probability:
                low, high = _BLUR_SIGMA
                images = gaussian_blur(images, low + (high - low) * torch.rand(len(images)))
        return images

    def _jitter(self, images: Tensor) -> Tensor:
        mean = self.pixel_mean.to(images, non_blocking=True)
        std = self.pixel_std.to(images, non_blocking=True)
        neutral = torch.tensor([1.0, 1.0, 1.0, 0.0])
        spread = torch.rand(len(images), 4) * 2 - 1
        factors = (neutral + self.jitter_strength * spread).tolist()
        orders = torch.rand(len(images), 4).argsort(dim=1).tolist()
        rgb = (images * std + mean) / 255
        jittered = [jitter_color(*drawn) for drawn in zip(rgb, factors, orders)]
        return (torch.stack(jittered) * 255 - mean) / std


def jitter_color(rgb: Tensor, factors: Sequence[float], order: Sequence[int]) -> Tensor:
    """Applies brightness, contrast, saturation and hue (numbers 0 to 3) in the given order.

    Args:
        rgb: (..., 3, H, W) in [0, 1].
        factors: of the four operations; 1, 1, 1, 0 change nothing.
        order: a permutation of 0, 1, 2, 3.
    """
    for operation in order:
        rgb = _OPERATIONS[operation](rgb, factors[operation])
    return rgb


def _adjust_saturation(rgb: Tensor, factor: float) -> Tensor:
    hue, saturation, value = _rgb_to_hsv(rgb)
    return _hsv_to_rgb(hue, (saturation * factor).clamp(0, 1), value)


def _adjust_hue(rgb: Tensor, turn: float) -> Tensor:
    hue, saturation, value = _rgb_to_hsv(rgb)
    return _hsv_to_rgb(hue + 6 * turn, saturation, value)


_OPERATIONS = (
    lambda rgb, factor: (rgb + (factor - 1)).clamp(0, 1),  # brightness
    lambda rgb, factor: (rgb * factor).clamp(0, 1),  # contrast
    _adjust_saturation,
    _adjust_hue,
)


def _rgb_to_hsv(rgb: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(..., 3, H, W) in [0, 1] -> hue in sixths of a turn, in [-1, 5]; saturation; value."""
    red, green, blue = rgb.unbind(-3)
    value, brightest = rgb.max(dim=-3)
    chroma = value - rgb.amin(dim=-3)
    # The hue of grey is arbitrary; dividing by 1 there makes it finite.
    width = torch.where(chroma == 0, 1, chroma)
    sector = torch.stack(
        ((green - blue) / width, 2 + (blue - red) / width, 4 + (red - green) / width), dim=-3
    )
    hue = sector.gather(-3, brightest.unsqueeze(-3)).squeeze(-3)
    return hue, chroma / (value + 1e-6), value


def _hsv_to_rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Inverse of ``_rgb_to_hsv``, for a hue of any size and sign.

    A channel falls short of ``value`` by up to ``value * saturation``, as a trapezium of the hue;
    the three trapezia are two sixths of a turn apart.
    """
    channels = []
    for shift in (5, 3, 1):
        place = (hue + shift) % 6
        channels.append(value - value * saturation * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, dim=-3)


_REACH = 6  # standard deviations, beyond which all taps together weigh less than 1e-8


def blur_kernel_size(length: int) -> int:
    """Odd number of taps of the reference, a tenth of the axis: 51 for 512 pixels, 103 for 1024."""
    tenth = math.ceil(0.1 * length)
    return math.floor(tenth - 0.5 + tenth % 2)


def gaussian_blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Convolves each image with its own sampled, normalised Gaussian; borders reflect.

    Of the taps of :func:`blur_kernel_size` those that weigh nothing in float32 are left out.

    Args:
        images: (B, C, H, W), of any size: the taps reach a twentieth of an axis, always less than
            reflection allows.
        sigma: (B,) standard deviations in pixels, on the CPU.
    """
    batch, channels, height, width = images.shape
    needed = 2 * math.ceil(_REACH * max(sigma.tolist())) + 1
    down, right = (
        _gaussian_taps(sigma, min(blur_kernel_size(length), needed)).repeat_interleave(
            channels, dim=0
        )
        for length in (height, width)
    )
    # Every channel of every image is a group of its own: one call, although images differ in sigma.
    groups = batch * channels
    margin = (right.shape[1] // 2,) * 2 + (down.shape[1] // 2,) * 2
    blurred = F.pad(images.reshape(1, groups, height, width), margin, mode="reflect")
    for taps in (down[:, None, :, None], right[:, None, None, :]):
        blurred = F.conv2d(blurred, taps.to(images, non_blocking=True), groups=groups)
    return blurred.view(images.shape)


def _gaussian_taps(sigma: Tensor, size: int) -> Tensor:
    """(B,) -> (B, size) float64, each row summing to 1."""
    offset = torch.arange(size, dtype=torch.float64) - size // 2
    return (-0.5 * (offset / sigma.double()[:, None]) ** 2).softmax(dim=1)
