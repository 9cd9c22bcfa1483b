#!/usr/bin/env python
"""Converts Mix Transformer weights (mit_b5.pth, Hugging Face SegFormer) to this project's names.

MODEL.WEIGHTS takes the original files as well; a converted file holds the checked encoder only.
"""

import argparse

from mpcl.modeling.weights import infer_variant, save_converted


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "src",
        help="a .pth or .bin file with the names of the SegFormer authors (alone, or inside a "
        "segmentation checkpoint) or of Hugging Face, a .safetensors file, or a Hugging Face "
        "folder such as a download of nvidia/mit-b5",
    )
    parser.add_argument("dst", help="the .pth file to write")
    args = parser.parse_args(arguments)
    try:
        conversion = save_converted(args.src, args.dst)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"{args.src}: {conversion.source} MiT-{infer_variant(conversion.state)}")
    print(f"  {len(conversion.state)} encoder tensors matched, all with the expected shape")
    print(f"  {len(conversion.left_out)} other tensors left out", *conversion.left_out[:5])
    print(f"written to {args.dst}")


if __name__ == "__main__":
    main()
