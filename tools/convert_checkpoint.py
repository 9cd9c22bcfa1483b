#!/usr/bin/env python
"""Converts the weights of others to a checkpoint that MODEL.WEIGHTS takes.

    python tools/convert_checkpoint.py mic_hrda/latest.pth weights/mic.pth
    python tools/train_net.py --config-file projects/MPCL/configs/mic.yaml --eval-only \\
        MODEL.WEIGHTS weights/mic.pth

Known are
  - DAFormer, HRDA and MIC checkpoints: encoder and decode head, of the student (model.*) and, where
    the file has one, of the teacher (ema_model.*);
  - SegFormer's mit_b0.pth ... mit_b5.pth and whole SegFormer models, of its authors or OpenMMLab;
  - Hugging Face SegFormer, a folder or its pytorch_model.bin or model.safetensors;
  - any encoder of timm, a file with --timm NAME, or a folder whose config.json names it;
  - EfficientNets of efficientnet_pytorch (B0 to B7, Lite), with --timm tf_efficientnet_b0 ...;
  - the one weight file inside an installed Python package, as package://NAME.
SegFormer's own decode head is another architecture than DAFormer's: of whole SegFormer models the
encoder alone is taken. MODEL.WEIGHTS reads all of these files directly, too; a converted file is
checked, holds nothing else, and can hold the teacher. No code in a file is ever run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from command_line import command_line, make_parser


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("src", help="file, Hugging Face folder, or package://NAME")
    parser.add_argument("dst", type=Path, help="the .pth file to write")
    parser.add_argument(
        "--part",
        choices=("both", "student", "teacher"),
        default="both",
        help="of a UDA checkpoint: the network that becomes the model; both keeps the student as "
        "the model and the teacher, where there is one, as its teacher (default)",
    )
    parser.add_argument("--timm", default="", metavar="NAME", help="the timm encoder of the file")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing DST")
    return parser.parse_args(argv)


def report(foreign) -> str:
    """What of a :class:`mpcl.checkpoint.foreign.Foreign` matched, is missing and was left out."""
    from mpcl.checkpoint.weight_files import some

    lines = [foreign.kind]
    for network, state in foreign.networks.items():
        lines.append(f"matched   {len(state)} tensors of the {network}, all of the expected shape")
    lines.append(f"missing   {foreign.missing or 'nothing'}")
    left_out = f"{len(foreign.left_out)} tensors ({some(foreign.left_out)})"
    lines.append(f"left out  {left_out if foreign.left_out else 'nothing'}")
    return "\n".join([*lines, foreign.note] if foreign.note else lines)


@command_line(parse_args)
def main(args: argparse.Namespace) -> None:
    from mpcl.checkpoint.foreign import convert_checkpoint

    if args.dst.exists() and not args.overwrite:
        raise ValueError(f"{args.dst} exists; name another file, or add --overwrite")
    foreign = convert_checkpoint(args.src, args.dst, part=args.part, timm_name=args.timm)
    print(f"{args.src}: {report(foreign)}\nwritten to {args.dst}")


if __name__ == "__main__":
    main()
