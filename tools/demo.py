#!/usr/bin/env python
"""Trains source-only, self-training and self-training + Gaussian prototypes; shows what each is
worth.

    python tools/demo.py                             # on Streets, which it draws
    python tools/demo.py --data my_data/data.yaml    # on your own images

The encoder was trained on ImageNet. One common start learns the source; each of the three methods
of projects/MPCL/configs/streets/ goes on from it, as many at a time as there are cores, and is
evaluated on the target's validation images. Ends with a table, results.json, a picture of
predictions beside ground truth, and a report of the three runs to open in a browser.

Of your own data (docs/GETTING_STARTED.md, step 2) the first labelled split is the source, the one
without labels the target, and the second labelled one the test; --splits names others.
"""

import argparse
import json
import os
import shlex
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from command_line import command_line, make_parser

ROOT = Path(__file__).resolve().parents[1]
RUNS = ("source_only", "daformer", "daformer_gauss")
COMMON_START = "common_start"
# Of the common start, and of each run after it: together minutes on two cores.
ITERATIONS = (800, 400)
# Of the user's own images: the longer side, pixels, and the largest crop.
LONGER_SIDE, LARGEST_CROP = 256, 160
ADAPTATION = [
    *("SOLVER.WARMUP_ITERS", "20", "PROTOTYPES.INIT.ITER", "50"),
    # It would compare with MODEL.WEIGHTS, which are those of the common start here.
    *("SELF_TRAINING.FEATURE_DISTANCE.WEIGHT", "0.0"),
]


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser(__doc__)
    parser.add_argument("--data", type=Path, metavar="FILE", help="YAML file of your own data")
    parser.add_argument(
        "--splits", nargs=3, metavar=("SOURCE", "TARGET", "TEST"), help="splits of --data to take"
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="default: output/demo, of your own data output/demo_<name of the data>",
    )
    parser.add_argument(
        "--iterations",
        type=int,
        nargs=2,
        metavar=("START", "RUN"),
        help=f"of the common start and of each run (default: {ITERATIONS[0]} {ITERATIONS[1]}, "
        "fewer where you have few images)",
    )
    parser.add_argument(
        "--keep-data", action="store_true", help="use Streets as it is, whatever its parameters"
    )
    parser.add_argument("--images", type=int, default=3, help="rows of the picture (default: 3)")
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for every run, such as SEED 1"
    )
    args = parser.parse_args(argv)
    if "OUTPUT_DIR" in args.opts[::2]:
        parser.error("each run has its own OUTPUT_DIR: name the folder of all with --output")
    return args


# ---- data


def own_data(
    file: Path, splits: Sequence[str] | None, iterations: Sequence[int] | None
) -> tuple[str, list[str], Sequence[int]]:
    """Default folder's name and config options for a user's own data, and iterations: those given,
    or such as suit the number of its images.

    Raises: FileNotFoundError, ValueError: the description is wrong, or does not say which split is
        the source, the target and the test.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from mpcl.data.files import sample
    from mpcl.data.sets.custom import register_from_yaml

    source, target, test = _roles(file, register_from_yaml(file), splits)
    records = {name: DatasetCatalog.get(name) for name in (source, target, test)}
    sizes = [_fitted_size(r) for name in (source, target) for r in sample(records[name], 50)]
    crop = min(LARGEST_CROP, min(map(min, sizes)) // 32 * 32)
    if crop == 0:
        raise ValueError(f"{file}: images of {min(sizes, key=min)} pixels are too small")
    box = max(map(max, sizes))
    number = len(records[source])
    suitable = max(200, min(ITERATIONS[0], 4 * number))
    start, run = iterations = iterations or (suitable, suitable // 2)
    print(
        f"{file}: source {source} ({number} images), target {target} ({len(records[target])}), "
        f"test {test} ({len(records[test])}).\nImages are fitted into {box}x{box} pixels, crops "
        f"are {crop}x{crop}; {start} iterations of the common start, {run} of each run.\n"
        "Larger images and longer runs give better models: docs/GETTING_STARTED.md."
    )
    classes = len(MetadataCatalog.get(source).stuff_classes)
    options = {
        "DATASETS.FILES": (str(file.resolve()),),
        "DATASETS.TRAIN": (source,),
        "DATASETS.TRAIN_TARGET": (target,),
        "DATASETS.TEST": (test,),
        "INPUT.SOURCE_SIZE": (box, box),
        "INPUT.TARGET_SIZE": (box, box),
        "INPUT.CROP.SIZE": (crop, crop),
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": classes,
    }
    name = f"demo_{source.partition('_sem_seg_')[0]}"
    return name, [str(word) for pair in options.items() for word in pair], iterations


def _roles(file: Path, names: list[str], splits: Sequence[str] | None) -> tuple[str, str, str]:
    """Registered names of the source, the target and the test set."""
    labelled = {n.partition("_sem_seg_")[2]: n for n in names if "_sem_seg_" in n}
    unlabelled = {n.partition("_images_")[2]: n for n in names if n not in labelled.values()}
    if splits is None:
        if len(labelled) != 2 or len(unlabelled) != 1:
            raise ValueError(
                f"{file} describes the labelled splits {list(labelled)} and {list(unlabelled)} "
                "without labels; expected two (source, then test) and one (target), or name them: "
                "--splits SOURCE TARGET TEST"
            )
        (source, test), (target,) = labelled, unlabelled
    else:
        source, target, test = splits
    for split, known in ((source, labelled), (target, unlabelled), (test, labelled)):
        if split not in known:
            kind = "labelled split" if known is labelled else "split without labels"
            raise ValueError(f"{file} has no {kind} {split!r}; it has {', '.join(known)}")
    return labelled[source], unlabelled[target], labelled[test]


def _fitted_size(record: dict) -> tuple[int, int]:
    """(width, height) of an image whose longer side is brought down to LONGER_SIDE."""
    from mpcl.data.decoding import stored_size

    height, width = stored_size(record["file_name"])
    scale = min(1.0, LONGER_SIDE / max(height, width))
    return round(scale * width), round(scale * height)


# ---- training


def config_file(name: str) -> str:
    return str(ROOT / "projects" / "MPCL" / "configs" / "streets" / f"{name}.yaml")


def check(output: Path, opts: Sequence[str]) -> None:
    """Looks at target and test as well before the common start, which reads the source alone.

    Raises: ValueError: says all that would stop one of the runs.
    """
    from mpcl.config import get_cfg_from
    from mpcl.config.preflight import preflight

    where = ["OUTPUT_DIR", str(output / RUNS[-1])]
    for note in preflight(get_cfg_from(config_file(RUNS[-1]), [*ADAPTATION, *opts, *where])):
        print(f"Note: {note}")


def train(name: str, folder: Path, opts: Sequence[str]) -> None:
    """One config, by tools/train_net.py in a process of its own; shows how far it is.

    One thread: networks of this size gain nothing by more, and the numbers are the same whatever
    the number of cores.

    Raises: ValueError: it failed; the message is the end of what it said.
    """
    command = [str(ROOT / "tools" / "train_net.py"), "--config-file", config_file(name)]
    command += ["--overwrite", "OUTPUT_DIR", str(folder), *opts]
    print(f"{folder.name}: python {shlex.join(command)}\n", flush=True)
    last: deque[str] = deque(maxlen=20)
    with subprocess.Popen(
        [sys.executable, "-W", "ignore", *command],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            last.append(line)
            if "  iter: " in line:
                print(f"{folder.name:>14}: {line.partition('eta: ')[2].rstrip()}", flush=True)
    if process.returncode:
        raise ValueError(f"{folder.name} failed:\n{''.join(last)}")


def refuse_other_runs(output: Path) -> None:
    """Raises ValueError where a run lies that a demo would replace, and that is none of a demo."""
    found = [name for name in RUNS if (output / name / "config.yaml").exists()]
    if found and not (output / COMMON_START).is_dir():
        raise ValueError(
            f"{output / found[0]} is a run of train_net.py, which the demo would replace: name "
            "another --output"
        )


def train_all(output: Path, iterations: Sequence[int], opts: Sequence[str]) -> None:
    """The common start, then as many runs at a time as there are cores, the longest first."""
    opts = ["LOG_PERIOD", "50", *opts]  # what it says shall fit a screen or two
    start, run = (["SOLVER.MAX_ITER", str(number)] for number in iterations)
    # Classes that a random crop seldom shows must be known before anything is adapted.
    balanced = ["DATALOADER.RARE_CLASS.ENABLED", "True", "DATASETS.TEST", "()"]
    train("source_only", output / COMMON_START, [*opts, *start, *balanced])
    opts = [
        *ADAPTATION,
        *opts,
        *run,
        "MODEL.WEIGHTS",
        str(output / COMMON_START / "model_final.pth"),
    ]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(cores or 1) as pool:
        jobs = [pool.submit(train, name, output / name, opts) for name in reversed(RUNS)]
    for job in jobs:
        job.result()


# ---- results


def scores(folder: Path) -> dict[str, float | None]:
    """mIoU in percent of both networks; without self-training there is no teacher."""
    from mpcl.evaluation.runs import read_run

    found = next(iter((read_run(folder).scores or {}).values()), {})
    return {name: found.get(name, {}).get("mIoU") for name in ("student", "teacher")}


def show_results(output: Path, subject: str, images: int, start: float) -> None:
    """Table, results.json, picture and report of the runs, ``start`` being when the demo began."""
    import torch
    from tabulate import tabulate

    from mpcl.predict.loading import load_networks
    from mpcl.visualization.comparison import comparison
    from mpcl.visualization.report.page import write_report

    folders = [output / name for name in RUNS]
    runs = {folder.name: scores(folder) for folder in folders}
    picture = output / "predictions.png"
    comparison({f.name: load_networks(f) for f in folders}, number=images).save(picture)
    page: Path | str = output / "report.html"
    try:
        write_report(folders, output / "report.html", images=images)
    except ValueError as error:  # such as plotly that is not installed
        page = f"none ({error})"
    results = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "seconds": round(time.perf_counter() - start, 1),
        "runs": runs,
    }
    (output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    rows = [(name, run["student"], run["teacher"]) for name, run in runs.items()]
    print(f"\nmIoU in percent on the target's validation images ({subject}):\n")
    print(tabulate(rows, headers=["run", "student", "teacher"], floatfmt=".1f", missingval="-"))
    print(f"\n{results['seconds']:.0f} s on {results['device']}. Picture: {picture}")
    print(f"Report, to open in a browser: {page}")
    print(f"Numbers: {output / 'results.json'}. TensorBoard: --logdir {output}")


@command_line(parse_args)
def main(args: argparse.Namespace) -> None:
    start = time.perf_counter()
    os.environ.setdefault("DETECTRON2_DATASETS", str(ROOT / "datasets"))
    if args.data:
        name, opts, iterations = own_data(args.data, args.splits, args.iterations)
    else:
        name, opts, iterations = "demo", [], args.iterations or ITERATIONS
        if not args.keep_data:  # a second run finds it complete
            subprocess.run([sys.executable, str(ROOT / "datasets/prepare_streets.py")], check=True)
    output = args.output or ROOT / "output" / name
    refuse_other_runs(output)
    output.mkdir(parents=True, exist_ok=True)
    check(output, ["SOLVER.MAX_ITER", str(iterations[1]), *opts, *args.opts])
    train_all(output, iterations, [*opts, *args.opts])
    show_results(output, str(args.data or "Streets"), args.images, start)


if __name__ == "__main__":
    main()
