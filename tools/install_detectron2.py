"""Give this Python a Detectron2: keep the one it has, or install a wheel pinned by its hash.

    python tools/install_detectron2.py

Detectron2 is not on the package index and its official build compiles C++ and CUDA code from a git
repository. What MPCL uses of it is pure Python, so a re-packaged wheel of upstream's main branch
(commit a59f0563, April 2024) serves as well. Its compiled part, ``detectron2._C``, fits Python 3.10
only and is not used here; with another Python Detectron2 goes without it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import import_module, metadata, util
from pathlib import Path

WHEEL = "sal-detectron2"
VERSION = "0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
PINNED = f"{WHEEL}=={VERSION} --hash=sha256:{SHA256}"

OFFICIAL = (
    "python -m pip install --no-build-isolation "
    "git+https://github.com/facebookresearch/detectron2.git"
)

# What MPCL builds on, by module.
PARTS = {
    "config": "get_cfg",
    "data": "transforms",
    "engine": "DefaultTrainer",
    "evaluation": "SemSegEvaluator",
    "modeling": "META_ARCH_REGISTRY",
}
TRIAL = """
import json, sys
sys.path.insert(0, sys.argv[1])
from install_detectron2 import trial
print(json.dumps(trial()))
"""


class InstallError(RuntimeError):
    """Something the user can put right; the message says how."""


def trial() -> tuple[str, str]:
    """Version and file of this process's detectron2, after a small trial.

    Raises: Exception: whatever stops it; v0.6, for one, is imported but fails with Pillow >= 10.
    """
    import detectron2
    import torch

    for module, name in PARTS.items():
        getattr(import_module(f"detectron2.{module}"), name)
    from detectron2.structures import ImageList

    batch = ImageList.from_tensors([torch.ones(3, 5, 7)], size_divisibility=4)
    assert tuple(batch.tensor.shape) == (1, 3, 8, 8), batch.tensor.shape
    return detectron2.__version__, detectron2.__file__


def run_check() -> tuple[str, str]:
    """:func:`trial` in a fresh process, which knows what has just been installed.

    Raises: InstallError: it fails; the message is its last line.
    """
    command = [sys.executable, "-W", "ignore", "-c", TRIAL, str(Path(__file__).parent)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"exit status {result.returncode}"]
        raise InstallError(lines[-1])
    version, file = json.loads(result.stdout.strip().splitlines()[-1])
    return version, file


def fetch(folder: Path) -> None:
    """Unpack the pinned wheel into ``folder`` with pip, which checks its hash.

    Raises: InstallError: pip is missing or failed.
    """
    if util.find_spec("pip") is None:
        raise InstallError(f"{sys.executable} has no pip: python -m ensurepip")
    with tempfile.TemporaryDirectory() as scratch:
        requirement = Path(scratch, "requirement.txt")
        requirement.write_text(PINNED + "\n")
        # --python-version: the wheel is tagged cp310 for the sake of its _C alone.
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile"]
        command += ["--only-binary=:all:", "--python-version", "3.10", "--target", str(folder)]
        command += ["--require-hashes", "--requirement", str(requirement)]
        # A user's pip settings may ask for --user, which --target excludes.
        if subprocess.run(command, env={**os.environ, "PIP_USER": "0"}).returncode:
            raise InstallError(
                f"pip could not fetch {WHEEL}=={VERSION} (see above). Without a network, carry the "
                "wheel along: docs/INSTALL.md. Or build the official one:\n  " + OFFICIAL
            )


def install(target: Path, replace: bool = False) -> None:
    """Fetch the wheel and lay its ``detectron2`` and metadata, nothing else, into ``target``.

    The wheel also has a top-level package ``tools``, which would shadow every project's own.

    Args:
        target: folder on (or for) the module path.
        replace: first uninstall, with pip, what provides detectron2 now.
    Raises: InstallError: ``target`` cannot be written, or holds a detectron2 already.
    """
    if not os.access(next(p for p in [target, *target.parents] if p.exists()), os.W_OK):
        raise InstallError(
            f"{target} cannot be written: use the Python of a virtual environment (make setup)"
        )
    with tempfile.TemporaryDirectory() as scratch:
        stage = Path(scratch)
        fetch(stage)
        # `pip uninstall` must not look for a "tools": by then it is someone else's.
        for record in stage.glob("*.dist-info/RECORD"):
            rows = record.read_text().splitlines(keepends=True)
            record.write_text("".join(row for row in rows if not row.startswith("tools/")))
        if replace:
            uninstall()
        parts = sorted(stage.glob("*detectron2*"))
        for occupied in (target / part.name for part in parts):
            if occupied.exists():
                raise InstallError(f"{occupied} is in the way: move it away first")
        target.mkdir(parents=True, exist_ok=True)
        for part in parts:
            shutil.move(part, target / part.name)


def uninstall() -> None:
    """Uninstall every distribution that provides detectron2."""
    # An editable one does not say what it provides; pip passes over what is not installed.
    owners = sorted({*metadata.packages_distributions().get("detectron2", []), "detectron2"})
    command = [sys.executable, "-m", "pip", "uninstall", "--yes", *owners]
    if subprocess.run(command).returncode:
        raise InstallError(f"pip could not uninstall {', '.join(owners)} (see above)")


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="put the wheel in place of the detectron2 that is there",
    )
    parser.add_argument(
        "--target",
        type=Path,
        metavar="DIR",
        help="lay it into DIR instead, to be carried to another machine and put on PYTHONPATH",
    )
    return parser.parse_args(argv)


def ensure(force: bool) -> None:
    """Leave this Python with a detectron2 that works, and say which.

    Raises: InstallError: there is one that does not work, or none could be installed.
    """
    site_packages = Path(sysconfig.get_path("purelib"))
    present = util.find_spec("detectron2") is not None
    if force or not present:
        print(f"Installing {WHEEL} {VERSION} into {site_packages}")
        install(site_packages, replace=force)
    try:
        version, file = run_check()
    except InstallError as error:
        raise InstallError(
            f"detectron2 is there but does not work: {error}\n"
            "Is another package missing? pip install -e . brings those that detectron2 needs.\n"
            "Otherwise put the tried wheel in its place: python tools/install_detectron2.py --force"
        ) from None
    kept = "" if force or not present else " (was there already, kept)"
    print(f"detectron2 {version} works{kept}: {Path(file).parent}")
    if any(site_packages.glob(f"{WHEEL.replace('-', '_')}-*.dist-info")):
        print(
            f"The official build in its place, for models that need detectron2._C:\n"
            f"  python -m pip uninstall --yes {WHEEL}\n  {OFFICIAL}"
        )


def main(argv: list[str] | None = None) -> int:
    arguments = parse_arguments(argv)
    try:
        if arguments.target is None:
            ensure(arguments.force)
        else:
            install(arguments.target)
            print(
                f"detectron2 lies in {arguments.target}; to use it: PYTHONPATH={arguments.target}"
            )
    except InstallError as error:
        print(f"install_detectron2: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
