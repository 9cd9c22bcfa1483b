"""MiT forward, and forward with backward, against transformers' SegFormer with equal weights."""

import torch

from .networks import assert_equal_outputs, deepest, pair
from .timing import Row, against, compare


def add_arguments(parser) -> None:
    parser.add_argument("--variants", nargs="+", default=["b0"], help="b0 ... b5")
    parser.add_argument("--size", type=int, default=512, help="side of the images")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)


def run(args) -> list[Row]:
    rows: list[Row] = []
    images = torch.randn(args.batch, 3, args.size, args.size, device=args.device)
    for variant in args.variants:
        ours, theirs = pair(variant, args.device)
        assert_equal_outputs(ours, theirs, images)
        where = f"MiT-{variant}, {args.batch}x{args.size}x{args.size}"

        def forward(network):
            with torch.inference_mode():
                network(images)

        def backward(network, output):
            output(network(images)).square().mean().backward()
            network.zero_grad(set_to_none=True)

        variants = {
            f"{where}, forward": lambda o=ours: forward(o),
            "transformers": lambda t=theirs: forward(t),
        }
        rows += _against(variants, args)
        variants = {
            f"{where}, forward and backward": lambda o=ours: backward(o, deepest),
            "transformers": lambda t=theirs: backward(t, lambda output: output.last_hidden_state),
        }
        rows += _against(variants, args)
    return rows


def _against(variants: dict, args) -> list[Row]:
    samples = compare(variants, device=args.device, repeats=args.repeats)
    return against(next(iter(variants)), samples, "transformers", args.device)
