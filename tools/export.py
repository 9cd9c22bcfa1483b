#!/usr/bin/env python
"""Writes a trained network for inference: slim weights, TorchScript, torch.export or ONNX.

  python tools/export.py --run output/gta5_to_cityscapes/mic_gauss --format slim --output slim.pth
  python tools/export.py --weights slim.pth --format onnx --output network.onnx

slim: one network (the teacher, or with --student the student) without prototypes, optimizer and the
other network. MODEL.WEIGHTS takes it and evaluates to the same numbers; tools/predict.py and
mpcl.Predictor need nothing else, as the config is inside.

torchscript, export, onnx: float32 RGB images (B, 3, H, W) in [0, 255] -> logits (B, C, H, W), of
any size from 64 pixels a side on. HRDA and MIC on it are fixed to one image of --size, as their
detail windows are a loop of Python; what is exported is one test window with all its detail
windows. Resizing before and sliding windows around are yours. The file is read back (ONNX by
onnxruntime) and compared with the network in PyTorch: the largest difference of logits is printed,
and exit status 1 says that it is above --tolerance. ONNX needs pip install -e '.[export]'.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from command_line import add_network_arguments, command_line, make_parser, network_arguments


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--format", required=True, help="slim, torchscript, export or onnx")
    parser.add_argument("--output", type=Path, required=True, help="file to write")
    parser.add_argument(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="of the example, and of HRDA the only one (default: TEST.SLIDE.CROP; others 256 512)",
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="of the logits (default: %(default)s)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing OUTPUT")
    add_network_arguments(parser)
    args = parser.parse_args(argv)
    args.network = network_arguments(parser, args)
    return args


@command_line(parse_args)
def main(args: argparse.Namespace) -> int:
    from mpcl.predict.export import FORMATS, export_network, save_slim
    from mpcl.predict.loading import load_networks

    if args.format not in FORMATS:
        raise ValueError(f"--format is {args.format}; expected one of {', '.join(FORMATS)}")
    if args.output.suffix != FORMATS[args.format]:
        raise ValueError(f"--output of {args.format} must end in {FORMATS[args.format]}")
    if args.output.exists() and not args.overwrite:
        raise ValueError(f"{args.output} exists; name another file, or add --overwrite")
    networks = load_networks(**args.network)
    if args.format == "slim":
        count = save_slim(networks, args.output)
        size = args.output.stat().st_size / 2**20
        print(f"{args.output}: {networks.role}, {count} tensors, {size:.1f} MiB")
        return 0
    exported = export_network(networks, args.output, args.format, args.size)
    sizes = "any size from 64 pixels a side" if exported.dynamic else "this size and number only"
    print(f"{args.output}: {networks.role} as {args.format}, {sizes}")
    for shape, difference in exported.differences.items():
        print(f"  images {'x'.join(map(str, shape))}: largest difference {difference:.2e}")
    within = (difference <= args.tolerance for difference in exported.differences.values())
    return int(not all(within))  # NaN is not


if __name__ == "__main__":
    raise SystemExit(main())
