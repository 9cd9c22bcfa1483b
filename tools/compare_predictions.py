#!/usr/bin/env python
"""Puts the predictions of finished runs side by side with the image and the ground truth.

    python tools/compare_predictions.py output/camvid/source_only output/camvid/daformer_gauss \\
        --output comparison.png

Each run is an output folder of tools/train_net.py. Its teacher is shown, where it has one. Rows are
evenly spaced images of the first run's first test set.
"""

import argparse
from pathlib import Path

from mpcl.engine.evaluate import load_run
from mpcl.pictures import comparison
from mpcl.utils.cli import add_debug_option, command_line


def shortest_names(folders: list[Path]) -> list[str]:
    """As many last parts of the paths as tell them apart: "seed_0", or "daformer/seed_0"."""
    paths = [folder.resolve() for folder in folders]
    if len(set(paths)) < len(paths):
        raise ValueError("a run is named twice: " + ", ".join(map(str, folders)))
    for length in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-length:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("different paths differ in some part")


@command_line
def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", help="output folders")
    parser.add_argument("--images", type=int, default=3, help="rows (default: 3)")
    parser.add_argument("--output", type=Path, default=Path("comparison.png"), help="PNG to write")
    add_debug_option(parser)
    args = parser.parse_args(argv)
    loaded = {name: load_run(run) for name, run in zip(shortest_names(args.runs), args.runs)}
    cfg = next(iter(loaded.values()))[0]
    networks = {name: teacher or student for name, (_, student, teacher) in loaded.items()}
    comparison(cfg, networks, num_images=args.images).save(args.output)
    print(args.output)


if __name__ == "__main__":
    main()
