#!/usr/bin/env python
"""Figures of trained networks, written as PNG.

  python tools/visualize.py compare RUN [RUN ...] --errors     # predictions beside the ground truth
  python tools/visualize.py curves RUN [RUN ...]                # mIoU over iterations, over seeds
  python tools/visualize.py activations --run RUN --class-name car   # where prototypes respond
  python tools/visualize.py features --run RUN --method tsne    # pixels and prototypes in the plane
  python tools/visualize.py clusterings --run RUN               # one or K prototypes a class
  python tools/visualize.py class-mix --run RUN                 # what the student trains on
  python tools/visualize.py pseudo-labels --run RUN             # what the teacher says, how surely
  python tools/visualize.py rare-classes --config-file CONFIG   # how often each class is drawn

A RUN is an output folder of tools/train_net.py, whose newest checkpoint is shown; for compare also
a checkpoint in such a folder, or a slim file (tools/export.py). --weights names another checkpoint,
--config-file with --weights one without a folder, and KEY VALUE pairs at the end another data set:
DATASETS.TEST "('cityscapes_fine_sem_seg_val',)". docs/SEEING.md shows and explains each figure.
features and clusterings need pip install -e '.[report]'.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from command_line import add_network_arguments, command_line, make_parser, network_arguments


def compare(args: argparse.Namespace) -> Any:
    from mpcl.evaluation.runs import shortest_names
    from mpcl.predict.loading import load_networks
    from mpcl.visualization.comparison import comparison

    other = ["DATASETS.TEST", f"({args.dataset!r},)", "TEST.SELECT_ON", ""]
    opts = other if args.dataset else []
    loaded = [load_networks(run, opts=opts) for run in args.runs]
    networks = dict(zip(shortest_names(args.runs), loaded))
    return comparison(networks, number=args.images, errors=args.errors, width=args.width)


def curves(args: argparse.Namespace) -> Any:
    from mpcl.evaluation.runs import read_experiments
    from mpcl.visualization.score_curves import score_figure

    return score_figure(read_experiments(args.runs), args.network, args.metric)


def rare_classes(args: argparse.Namespace) -> Any:
    from mpcl.config import get_cfg_from
    from mpcl.visualization.rare_classes import frequencies, rare_class_figure

    cfg = get_cfg_from(str(args.config_file or args.run / "config.yaml"), args.opts)
    return rare_class_figure(cfg, frequencies(cfg))


def activations(args: argparse.Namespace, networks: Any) -> Any:
    from mpcl.visualization.activations import activation_figure
    from mpcl.visualization.scenes import first_test_set

    dataset = args.dataset or first_test_set(networks.cfg)
    return activation_figure(networks, dataset, args.class_name, number=args.images)


def features(args: argparse.Namespace, networks: Any) -> Any:
    from mpcl.visualization.feature_map import feature_figure

    return feature_figure(networks, **pixels(args))


def clusterings(args: argparse.Namespace, networks: Any) -> Any:
    from mpcl.visualization.clusterings import clustering_figure

    return clustering_figure(networks, **pixels(args), prototypes=args.prototypes)


def pixels(args: argparse.Namespace) -> dict[str, Any]:
    """Which pixels are shown in the plane, and how they are projected."""
    chosen = {"number": args.images, "classes": args.classes, "per_class": args.pixels}
    return {"method": args.method, **chosen}


def class_mix(args: argparse.Namespace, networks: Any) -> Any:
    from mpcl.visualization.training_views import class_mix_figure

    return class_mix_figure(networks, number=args.images)


def pseudo_labels(args: argparse.Namespace, networks: Any) -> Any:
    from mpcl.visualization.training_views import pseudo_label_figure

    figure, quality = pseudo_label_figure(networks, number=args.images)
    if quality is not None:
        sure = "; none is confident"
        if quality.confident_right is not None:
            share, confident = quality.confident_right, quality.confident
            sure = f", {share:.1%} of the {confident:.1%} that are confident"
        print(f"Right: {quality.right:.1%} of all pseudo-labels{sure}")
    return figure


RUNS_ALONE = (compare, curves)
"""The figures that take runs, and no other network."""


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    commands = parser.add_subparsers(dest="figure", required=True)

    def add(figure, images: int, text: str) -> argparse.ArgumentParser:
        name = figure.__name__.replace("_", "-")
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(make=figure)
        command.add_argument("--output", type=Path, default=Path(f"{name}.png"), help="PNG")
        if images:
            command.add_argument("--images", type=int, default=images, help="default: %(default)s")
        if figure in RUNS_ALONE:
            command.add_argument("runs", type=Path, nargs="+", metavar="RUN")
        else:
            add_network_arguments(command, student=False)
        return command

    command = add(compare, 3, "predictions of several runs, ground truth and errors")
    command.add_argument("--dataset", help="labelled set (default: the first of DATASETS.TEST)")
    command.add_argument("--errors", action="store_true", help="where each prediction is wrong")
    command.add_argument("--width", type=int, default=512, help="of a picture, at most, pixels")
    command = add(curves, 0, "scores over iterations: mean and deviation over seeds")
    command.add_argument("--network", choices=("teacher", "student"), default="teacher")
    command.add_argument("--metric", default="mIoU", help="such as IoU-road (default: mIoU)")
    command = add(activations, 3, "where in an image each prototype of a class responds")
    command.add_argument("--class-name", required=True, help="such as car")
    command.add_argument("--dataset", help="labelled set (default: the first of DATASETS.TEST)")
    in_the_plane = {
        features: "pixel features of both domains in the plane, with the prototypes if any",
        clusterings: "one centroid, K centroids and K Gaussians fitted to the same features",
    }
    for figure, text in in_the_plane.items():
        command = add(figure, 16, text)
        command.add_argument("--method", default="tsne", help="tsne or pca (default: tsne)")
        command.add_argument(
            "--classes", nargs="+", default=[], help="default: the 8 most frequent"
        )
        command.add_argument("--pixels", type=int, default=150, help="of each class and domain")
    command.add_argument("--prototypes", type=int, default=5, metavar="K", help="default: 5")
    add(class_mix, 4, "samples as self-training makes them")
    add(pseudo_labels, 4, "the teacher's labels of target images and their confidence")
    add(rare_classes, 0, "how often each class is there, and is drawn")
    args = parser.parse_args(argv)
    if args.make is rare_classes and not (args.run or args.config_file):
        parser.error("name a config: --run FOLDER, or --config-file FILE")
    if args.make not in RUNS_ALONE:
        args.networks = network_arguments(parser, args)
    return args


@command_line(parse_args)
def main(args: argparse.Namespace) -> None:
    from mpcl.predict.loading import load_networks

    args.output.parent.mkdir(parents=True, exist_ok=True)
    if args.make in (*RUNS_ALONE, rare_classes):
        picture = args.make(args)  # matplotlib's or Pillow's
    else:
        picture = args.make(args, load_networks(**args.networks))
    if hasattr(picture, "savefig"):
        picture.savefig(args.output, dpi=130)
    else:
        picture.save(args.output)
    print(args.output)


if __name__ == "__main__":
    main()
