#!/usr/bin/env python
"""What the prototypes of a run do: a table, prototypes.json, and two pictures.

  python tools/inspect_prototypes.py --run output/streets/daformer_gauss
  python tools/inspect_prototypes.py --run RUN --weights RUN/model_0004000.pth --since A.pth B.pth
  python tools/inspect_prototypes.py --config-file CONFIG --weights model.pth

Looks at labelled images of the source (DATASETS.TRAIN) and the target (DATASETS.TEST), and says of
each prototype: which share of its class's pixels is nearest to it, how many of the pixels that it
is nearest to are of its class (purity), how far these spread, how near the next prototype of the
same and of another class is, how far it has moved since it started and since each checkpoint of
--since (default: the periodic ones of the run), whether it is dead, and which pixels are the
nearest (gallery.png shows them). distances.png has all prototypes against all. docs/SEEING.md says
how to read them.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from command_line import add_network_arguments, command_line, make_parser, network_arguments


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--since", type=Path, nargs="+", default=[], help="earlier checkpoints")
    parser.add_argument("--images", type=int, default=20, help="of each domain (default: 20)")
    parser.add_argument("--patches", type=int, default=4, help="of each prototype (default: 4)")
    parser.add_argument("--output", type=Path, help="folder (default: RUN/prototypes)")
    add_network_arguments(parser, student=False)
    args = parser.parse_args(argv)
    args.network = network_arguments(parser, args)
    return args


def earlier_checkpoints(args: argparse.Namespace) -> list[Path]:
    """The run's checkpoints of iterations before the one that is looked at, oldest first."""
    from mpcl.checkpoint.training import checkpoints_in, iteration_of

    paths = sorted(checkpoints_in(args.run), key=iteration_of)
    looked_at = iteration_of(Path(args.network["weights"] or paths[-1]))
    return [path for path in paths if iteration_of(path) < looked_at]


@command_line(parse_args)
def main(args: argparse.Namespace) -> None:
    from mpcl.predict.loading import load_networks
    from mpcl.visualization.prototype_inspection import inspect, table
    from mpcl.visualization.prototype_pictures import distance_figure, gallery

    networks = load_networks(**args.network)
    since = args.since or (earlier_checkpoints(args) if args.run else [])
    inspection = inspect(networks, number=args.images, patches=args.patches, weights=since)
    folder = args.output or (args.run or Path()) / "prototypes"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prototypes.json").write_text(json.dumps(asdict(inspection), indent=2) + "\n")
    gallery(inspection).save(folder / "gallery.png")
    distance_figure(inspection).savefig(folder / "distances.png", dpi=130)
    print(table(inspection))
    dead = [f"{p.class_name} {p.number}" for p in inspection.prototypes if p.dead]
    unused = [f"{p.class_name} {p.number}" for p in inspection.prototypes if not p.used]
    shares = [f"{100 * share:.1f} % ({role})" for role, share in inspection.accuracy.items()]
    right = ", ".join(shares) or "none"
    print(f"\nPixels of started classes whose nearest prototype is of their class: {right}.")
    print(f"Dead: {', '.join(dead) or 'none'}. Unused: {', '.join(unused) or 'none'}.")
    if inspection.waiting:
        print(f"Not started: {', '.join(inspection.waiting)}.")
    print(f"Written: {folder}/prototypes.json, gallery.png, distances.png")


if __name__ == "__main__":
    main()
