#!/usr/bin/env python
"""Checks and measures the project on a machine with a GPU. Needs no data and no network.

  python tools/gpu_check.py --output DIR                      # about eight minutes on a GPU
  python tools/gpu_check.py --output DIR --tiny --device cpu  # the same stages on any machine
  python tools/gpu_check.py --collect-wheels WHEELS           # on a machine with a network
  python tools/gpu_check.py --output DIR --wheels WHEELS      # on one without

Each stage is a process of its own with a time limit; its log, and its figures in JSON, are in DIR
as soon as it has ended. The exit status is 1 if a stage failed or ran out of time.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLER = ROOT / "tools" / "install_detectron2.py"
DETECTRON2 = ("--python-version", "3.10", "sal-detectron2==0.7.2")  # whatever Python runs it

# What a machine with torch, torchvision, timm, OpenCV and TensorBoard may still lack.
BUILT = ("fvcore", "iopath", "antlr4-python3-runtime==4.9.3")  # pure Python, published as source
BINARY = ("pycocotools", "omegaconf<2.4", "hydra-core", "yacs", "portalocker", "termcolor")
BINARY += ("cloudpickle", "tabulate", "tqdm")
BINARY += ("matplotlib", "contourpy", "cycler", "fonttools", "kiwisolver", "pyparsing")
BINARY += ("python-dateutil", "six")

# Stages in the order of their worth, and the seconds that each may take of eight minutes.
LIMITS = {
    "versions": 40,
    "tests": 100,
    "train": 140,
    "step": 60,
    "peaks": 50,
    "precision": 120,
    "convolutions": 30,
    "resume": 120,
    "evaluation": 50,
    "predictor": 30,
    "parts": 70,
}


def parse_args(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for logs and figures")
    parser.add_argument("--minutes", type=float, default=8, help="of all stages (default: 8)")
    parser.add_argument("--stages", nargs="+", choices=LIMITS, default=[*LIMITS], metavar="STAGE")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="the smallest network and images")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="of --collect-wheels: use them")
    parser.add_argument("--collect-wheels", type=Path, metavar="DIR", help="fetch what may lack")
    parser.add_argument("--python-version", default="3.12", help="of the machine with the GPU")
    args = parser.parse_args(words)
    if (args.output is None) == (args.collect_wheels is None):
        parser.error("give either --output or --collect-wheels")
    return args


def collect(folder: Path, python_version: str) -> None:
    """Fetches the wheels of BUILT, BINARY and Detectron2."""
    pip = [sys.executable, "-m", "pip"]
    fetch = [*pip, "download", "--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(folder), *BUILT], check=True)
    subprocess.run([*fetch, "--python-version", python_version, *BINARY], check=True)
    subprocess.run([*fetch, *DETECTRON2], check=True)


def install(wheels: Path, target: Path) -> None:
    """Unpacks the wheels into a folder; what is there already stays."""
    if target.exists():
        return
    files = [str(file) for file in sorted(wheels.glob("*.whl")) if "detectron2" not in file.name]
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--target"]
    subprocess.run([*pip, str(target), *files], check=True)
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels.resolve())}
    command = [sys.executable, str(INSTALLER), "--target", str(target)]
    subprocess.run(command, check=True, env=os.environ | offline)


def commands(stage: str, args: argparse.Namespace) -> list[str]:
    if stage == "versions":
        return [str(ROOT / "tools" / "doctor.py")]
    if stage == "tests":
        marked = sorted(
            str(file)
            for file in (ROOT / "tests").rglob("test_*.py")
            if "pytest.mark.gpu" in file.read_text(encoding="utf-8")
        )
        return ["-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", *marked]
    words = [str(ROOT / "dev" / "gpu_stages.py"), stage, "--folder", str(args.output)]
    return [*words, "--device", args.device, *(["--tiny"] if args.tiny else [])]


def run(command: list[str], log: Path, seconds: float, environment: dict[str, str]) -> str:
    """Ends the stage, with all of its processes, when its time is over. Returns how it ended."""
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return f"out of time ({seconds:.0f} s)"
    return "ok" if status == 0 else f"failed (status {status})"


def main(words: Sequence[str] | None = None) -> int:
    args = parse_args(words)
    if args.collect_wheels is not None:
        collect(args.collect_wheels, args.python_version)
        return 0
    args.output = args.output.resolve()
    args.output.mkdir(parents=True, exist_ok=True)
    paths = [str(ROOT / "projects" / "MPCL"), str(ROOT / "dev")]
    if args.wheels is not None:
        install(args.wheels, args.output / "packages")
        paths.append(str(args.output / "packages"))
    paths += [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    environment |= {"DETECTRON2_DATASETS": str(args.output / "data")}
    end, ended = time.monotonic() + 60 * args.minutes, {}
    for stage in args.stages:
        begin, limit = time.monotonic(), LIMITS[stage] * args.minutes / 8
        limit = min(limit, end - begin)
        log = args.output / f"{stage}.log"
        ended[stage] = "no time left"
        if limit > 0:
            ended[stage] = run(commands(stage, args), log, limit, environment)
        print(f"{stage:<12} {ended[stage]:<22} {time.monotonic() - begin:6.1f} s", flush=True)
        figures = args.output / f"{stage}.json"
        if ended[stage] == "ok" and figures.exists():
            for name, value in json.loads(figures.read_text(encoding="utf-8")).items():
                print(f"    {name:<40} {value:.4g}", flush=True)
        (args.output / "summary.json").write_text(json.dumps(ended, indent=2) + "\n")
    return int(any(how != "ok" for how in ended.values()))


if __name__ == "__main__":
    sys.exit(main())
