"""Images per second: whole image and sliding window, against transformers' SegFormer."""

from functools import partial

import torch
from torch import nn

from mpcl.modeling.daformer_head import DAFormerHead
from mpcl.modeling.inference import sliding_window, whole_image

from .networks import assert_equal_outputs, pair
from .timing import Row, compare, device_name, row


def add_arguments(parser) -> None:
    parser.add_argument("--variants", nargs="+", default=["b0"], help="b0 ... b5")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), metavar=("H", "W"))
    parser.add_argument("--window", type=int, default=256, help="side of the sliding window")
    parser.add_argument("--repeats", type=int, default=5)


def run(args) -> list[Row]:
    """The encoder against transformers' under equal weights; the whole network for its own sake."""
    rows: list[Row] = []
    images = torch.randn(1, 3, *args.size, device=args.device)
    side = (args.window, args.window)
    step = (args.window // 2, args.window // 2)
    sliding = partial(sliding_window, crop=side, stride=step, batch_size=4)
    for variant in args.variants:
        ours, theirs = pair(variant, args.device)
        assert_equal_outputs(ours, theirs, images)
        head = DAFormerHead(ours.output_shape(), num_classes=19).eval().to(args.device)
        network = nn.Sequential(ours, head)
        calls = {
            "transformers": lambda t=theirs: t(images),
            f"MiT-{variant} encoder, whole image": lambda o=ours: o(images),
            f"MiT-{variant} + head, whole image": lambda n=network: whole_image(n, images),
            f"MiT-{variant} + head, windows": lambda n=network: sliding(n, images),
        }
        with torch.inference_mode():
            samples = compare(calls, device=args.device, repeats=args.repeats)
        hardware = device_name(args.device)
        baseline = samples.pop("transformers")
        for number, (name, sample) in enumerate(samples.items()):
            # Only the encoder has an equal on the other side.
            other = baseline.seconds if number == 0 else None
            rows.append(row(f"{name}: time of an image", sample.seconds, "s", other, hardware))
            rows.append(row(f"{name}: rate", 1 / sample.seconds, "images/s", None, hardware))
    return rows
