#!/usr/bin/env python
"""Trains source-only, self-training and self-training + Gaussian prototypes on Streets; shows what
each is worth.

Makes the embedded data if it is not there, trains the three configs of
projects/MPCL/configs/streets/ one after the other from random initialisation, evaluates each on the
target's validation images, and ends with a table, results.json, a picture of predictions beside
ground truth, and a report of the three runs to open in a browser.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RUNS = ("source_only", "daformer", "daformer_gauss")
# Of the common start, and of each run after it: together minutes on two cores.
PRETRAINING_ITERATIONS = 1600
ITERATIONS = 300
ADAPTATION = ["SOLVER.BASE_LR", "0.001", "SOLVER.WARMUP_ITERS", "20", "PROTOTYPES.INIT.ITER", "50"]


def parse_args(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--output", type=Path, default=ROOT / "output" / "demo", help="default: output/demo"
    )
    parser.add_argument(
        "--iterations",
        type=int,
        nargs=2,
        metavar=("START", "RUN"),
        default=(PRETRAINING_ITERATIONS, ITERATIONS),
        help="of the common start and of each run (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-data", action="store_true", help="use Streets as it is, whatever its parameters"
    )
    parser.add_argument("--images", type=int, default=3, help="rows of the picture (default: 3)")
    parser.add_argument(
        "opts",
        nargs=argparse.REMAINDER,
        help="KEY VALUE pairs for every run, such as SEED 1",
    )
    parser.add_argument("--debug", action="store_true", help="show the full traceback of an error")
    return parser.parse_args(argv)


def make_data() -> None:
    """Streets under DETECTRON2_DATASETS; a second run finds it complete."""
    os.environ.setdefault("DETECTRON2_DATASETS", str(ROOT / "datasets"))
    subprocess.run([sys.executable, str(ROOT / "datasets" / "prepare_streets.py")], check=True)


def train(name: str, folder: Path, opts: list[str]):
    """One config from its initial weights to its evaluation; returns the finished trainer."""

    from mpcl.config import get_cfg_from
    from mpcl.engine import AdaptationTrainer
    from mpcl.evaluation.run_record import record_session

    config_file = str(ROOT / "projects" / "MPCL" / "configs" / "streets" / f"{name}.yaml")
    cfg = get_cfg_from(config_file, [*opts, "OUTPUT_DIR", str(folder)])
    cfg.freeze()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(cfg.dump())
    record_session(cfg, config_file)
    trainer = AdaptationTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer


def scores(trainer) -> dict[str, float | None]:
    """mIoU in percent of both networks; without self-training there is no teacher."""
    from detectron2.evaluation.testing import flatten_results_dict

    from mpcl.evaluation.evaluator import mean_metrics
    from mpcl.evaluation.runs import scores_by_dataset

    test, headline = trainer.cfg.DATASETS.TEST, mean_metrics(trainer.cfg.TEST.CLASS_SUBSETS)[0]
    scores = scores_by_dataset(flatten_results_dict(trainer._last_eval_results), test)[test[0]]
    return {name: scores.get(name, {}).get(headline) for name in ("student", "teacher")}


def write_page(folder: Path, images: int) -> Path | str:
    """The report about the three runs; without plotly, how to get it."""
    from mpcl.visualization.report.page import write_report

    page = folder / "report.html"
    try:
        write_report([folder / name for name in RUNS], page, images=images)
    except ValueError as error:
        return f"none ({error})"
    return page


def main(argv=None) -> None:
    args = parse_args(argv)
    if not args.keep_data:
        make_data()

    import torch
    from detectron2.utils.logger import setup_logger
    from tabulate import tabulate

    from mpcl.visualization.comparison import comparison

    args.output.mkdir(parents=True, exist_ok=True)
    for package in ("detectron2", "fvcore", "mpcl"):
        setup_logger(str(args.output), name=package)
    start = time.perf_counter()
    start_iterations, run_iterations = (["SOLVER.MAX_ITER", str(n)] for n in args.iterations)
    common_start = args.output / "common_start"
    # Classes that a random crop seldom shows must be known before anything is adapted.
    balanced = ["DATALOADER.RARE_CLASS.ENABLED", "True", "DATASETS.TEST", "()"]
    train("source_only", common_start, [*args.opts, *start_iterations, *balanced])
    opts = [*ADAPTATION, *args.opts, *run_iterations]
    opts += ["MODEL.WEIGHTS", str(common_start / "model_final.pth")]
    trainers = {name: train(name, args.output / name, opts) for name in RUNS}
    runs = {name: scores(trainer) for name, trainer in trainers.items()}
    networks = {name: (t.cfg, t.teacher or t.student) for name, t in trainers.items()}
    picture = args.output / "predictions.png"
    comparison(networks, number=args.images).save(picture)
    device = trainers[RUNS[0]].cfg.MODEL.DEVICE
    results = {
        "device": torch.cuda.get_device_name() if device != "cpu" else "cpu",
        "seconds": round(time.perf_counter() - start, 1),
        "runs": runs,
    }
    (args.output / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    page = write_page(args.output, args.images)
    rows = [(name, run["student"], run["teacher"]) for name, run in runs.items()]
    print("\nmIoU in percent on the target's validation images (Streets):\n")
    print(tabulate(rows, headers=["run", "student", "teacher"], floatfmt=".1f", missingval="-"))
    print(f"\n{results['seconds']:.0f} s on {results['device']}. Picture: {picture}")
    print(f"Report, to open in a browser: {page}")
    print(f"Numbers: {args.output / 'results.json'}. TensorBoard: --logdir {args.output}")


if __name__ == "__main__":
    from mpcl.utils.cli import command_line

    command_line(main)()
