"""Say what is installed and found, and what would stop a training.

    python tools/doctor.py
    python tools/doctor.py --config-file projects/MPCL/configs/X.yaml [KEY VALUE ...]

Without a config, missing data sets and weights are information. With one, all is looked at that
tools/train_net.py looks at before it starts. The exit status is 1 if something stops a training;
each such thing has a line on its remedy.
"""

from __future__ import annotations

import argparse
import faulthandler
import functools
import importlib
import importlib.util
import logging
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import install_detectron2

logger = logging.getLogger("doctor")

OK, NOTE, STOP = "ok", "note", "STOP"

INSTALL = "python -m pip install -e ."
PAIR = (
    "install torch and torchvision of one release, for instance: "
    "python -m pip install -c requirements/constraints.txt torch torchvision"
)
# Module -> what to do when it cannot be imported. torch comes first: others fail because of it.
MODULES = {
    "torch": PAIR,
    "torchvision": PAIR,
    "numpy": INSTALL,
    "PIL": INSTALL,
    "cv2": INSTALL,
    "timm": INSTALL,
    "fvcore": INSTALL,
    "iopath": INSTALL,
    "yacs": INSTALL,
    "omegaconf": INSTALL,
    "pycocotools": INSTALL,
    "tensorboard": INSTALL,
    "matplotlib": INSTALL,
}
LITTLE_DISK = 5e9  # bytes; a checkpoint of MiT-B5 with teacher and optimizer takes more than 1e9
LITTLE_SHARED_MEMORY = 1e9  # bytes; loader workers hand their images over through it


class Finding(NamedTuple):
    """One line of the report; ``remedy`` is what to do about it, where ``text`` does not say so."""

    mark: str
    name: str
    text: str
    remedy: str = ""


def reason(error: BaseException) -> str:
    """The kind and the first line of an error; with --debug its traceback is logged."""
    logger.debug("%s", error, exc_info=error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


# Reading the file lists of all distributions takes most of a second.
distributions = functools.cache(metadata.packages_distributions)


def distribution_version(module: str) -> str:
    """Version of the distribution that brought a module, with the name where it differs."""
    for name in distributions().get(module, [module]):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        return version if name == module else f"{version} ({name})"
    return "of unknown version"


def check_module(name: str, remedy: str) -> Finding:
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:
        return Finding(STOP, name, reason(error), remedy)
    return Finding(OK, name, distribution_version(name))


def check_detectron2() -> Iterator[Finding]:
    try:
        _, file = install_detectron2.trial()
    except (Exception, SystemExit) as error:
        remedy = "python tools/install_detectron2.py"
        if importlib.util.find_spec("detectron2") is not None:
            remedy += " --force (after the other remedies)"
        yield Finding(STOP, "detectron2", reason(error), remedy)
        return
    yield Finding(OK, "detectron2", f"{distribution_version('detectron2')}, {Path(file).parent}")
    compiled = check_module("detectron2._C", "")
    text = "present" if compiled.mark == OK else "absent or made for another Python or torch"
    yield Finding(OK, "detectron2._C", f"{text}; not needed here")


def check_mpcl() -> Finding:
    missing = importlib.util.find_spec("mpcl") is None
    finding = check_module(
        "mpcl",
        f"{INSTALL} (or run with PYTHONPATH=projects/MPCL)"
        if missing
        else "after the other remedies: git status tells whether the checkout is whole",
    )
    if finding.mark == STOP:
        return finding
    return finding._replace(text=str(Path(str(sys.modules["mpcl"].__file__)).parent))


def check_unpickler() -> Iterator[Finding]:
    """Whether this torch reads tensors from a file without running code of it, as far as known."""
    try:
        import torch
        from packaging.version import Version

        unsafe = Version(torch.__version__) < Version("2.10")
    except Exception:  # its own line says so
        return
    if unsafe:
        text = "this torch has known ways to run code from .pth files (docs/SECURITY.md)"
        remedy = "torch 2.10 or newer; until then open .safetensors, and .pth files you trust"
        yield Finding(NOTE, "weight files", text, remedy)


def check_devices() -> Iterator[Finding]:
    yield Finding(OK, "cpu", f"{os.cpu_count()} cores")
    try:
        import torch

        if not torch.cuda.is_available():
            yield _no_gpu(torch.version.cuda)
            return
        from mpcl.utils.gpus import computes_bfloat16, has_kernels

        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            text, name = f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB", f"gpu {index}"
            if not has_kernels(index):
                remedy = "a torch that was built for it (docs/INSTALL.md)"
                yield Finding(STOP, name, f"{text}; this torch has no kernels for it", remedy)
            elif computes_bfloat16(index):
                yield Finding(OK, name, text)
            else:
                remedy = "to train with SOLVER.AMP.PRECISION float16"
                yield Finding(NOTE, name, f"{text}, no bfloat16", remedy)
    except Exception as error:
        yield Finding(NOTE, "gpu", reason(error))


def _no_gpu(cuda: str | None) -> Finding:
    if not Path("/proc/driver/nvidia/version").exists():
        return Finding(
            NOTE, "gpu", "none: enough for the demo and the tests, too slow for training"
        )
    return Finding(
        NOTE,
        "gpu",
        f"an NVIDIA driver is there, but this torch (CUDA {cuda}) cannot use it",
        "newer driver, or a torch built for the driver's CUDA version (docs/INSTALL.md)",
    )


def check_output(output: Path) -> Finding:
    parent = existing(output)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        remedy = "make it writable, or choose another: OUTPUT_DIR path/to/folder"
        return Finding(STOP, "output", f"{parent} cannot be written", remedy)
    return Finding(OK, "output", str(output))


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    return next(place for place in [path, *path.absolute().parents] if place.exists())


def check_space(output: Path) -> Iterator[Finding]:
    free = shutil.disk_usage(existing(output)).free
    yield Finding(OK if free > LITTLE_DISK else NOTE, "disk", f"{free / 1e9:.0f} GB free")
    shared = Path("/dev/shm")
    if shared.is_dir() and shutil.disk_usage(shared).total < LITTLE_SHARED_MEMORY:
        remedy = "docker run --shm-size=8g, or DATALOADER.NUM_WORKERS 0"
        yield Finding(NOTE, "shared memory", "too small for loader workers", remedy)


def check_weights() -> Iterator[Finding]:
    """The pretrained encoders that are there, for a look without a config."""
    files = sorted(Path("weights").glob("*.pth"))
    for file in files:
        yield Finding(OK, "weights", f"{file}, {file.stat().st_size / 1e6:.0f} MB")
    if not files:
        yield Finding(NOTE, "weights", "no weights/*.pth (README.md says where they come from)")


def check_dataset(name: str) -> Finding:
    """Lists a data set's files, without opening one; that they are missing is no obstacle here."""
    from detectron2.data import DatasetCatalog

    try:
        return Finding(OK, name, f"{len(DatasetCatalog.get(name))} images")
    except Exception as error:
        text = str(error).strip().partition("\n")[0].removeprefix(f"data set {name!r}: ")
        return Finding(NOTE, name, text)


def check_datasets() -> Iterator[Finding]:
    """The data sets that are there; without a config nobody needs the others."""
    from mpcl.data.sets.registration import registered_names

    listed = [check_dataset(name) for name in registered_names()]
    found = [finding for finding in listed if finding.mark == OK]
    yield from found
    missing = f"{len(listed) - len(found)} of {len(listed)} known ones are not there"
    yield Finding(OK, "data sets", f"{missing}; --config-file says which of them a config needs")


def check_config(cfg: Any) -> Iterator[Finding]:
    """What tools/train_net.py would say before it starts, and what of it is there."""
    from mpcl.checkpoint.weight_files import find_weight_file
    from mpcl.config.preflight import find_faults

    faults, notes = find_faults(cfg)
    weights = cfg.MODEL.WEIGHTS
    if not weights:
        yield Finding(NOTE, "weights", "MODEL.WEIGHTS is empty: a random start")
    else:
        with suppress(ValueError, OSError):  # which are among the faults below
            size = Path(find_weight_file(weights)).stat().st_size
            yield Finding(OK, "weights", f"{weights}, {size / 1e6:.0f} MB")
    yield from check_space(Path(cfg.OUTPUT_DIR))
    names = [*cfg.DATASETS.TRAIN, *cfg.DATASETS.TRAIN_TARGET, *cfg.DATASETS.TEST]
    listed = [check_dataset(name) for name in dict.fromkeys(names)]
    yield from (finding for finding in listed if finding.mark == OK)
    yield from (Finding(NOTE, "this run", note) for note in notes)
    yield from (Finding(STOP, "this run", fault) for fault in faults)


def check_run(config_file: str, opts: list[str]) -> Iterator[Finding]:
    """What a training finds: all that there is, or all that a config names."""
    try:
        if config_file:
            from mpcl.config import get_cfg_from

            yield from check_config(get_cfg_from(config_file, opts))
        else:
            yield check_output(Path("output"))
            yield from check_space(Path("output"))
            yield from check_weights()
            yield from check_datasets()
    except Exception as error:
        name = "config" if config_file else "data sets"
        yield Finding(STOP, name, reason(error), "correct what the message names, then ask again")


def examine(config_file: str, opts: list[str]) -> Iterator[Finding]:
    """All findings, in the order in which a user should look at them."""
    yield Finding(OK, "python", f"{platform.python_version()}, {sys.executable}")
    for name, remedy in MODULES.items():
        yield check_module(name, remedy)
    yield from check_detectron2()
    yield check_mpcl()
    yield from check_unpickler()
    yield from check_devices()
    yield from check_run(config_file, opts)


def report(findings: Iterator[Finding]) -> int:
    """Prints the findings as they come, then the remedies.

    Returns: the number of findings that stop a training.
    """
    stops = []
    for finding in findings:
        print(f"{finding.mark:>4}  {finding.name:<32} {finding.text}", flush=True)
        if finding.mark == STOP:
            stops.append(finding)
        elif finding.remedy:
            print(f"{'':38} -> {finding.remedy}")
    print(f"\n{len(stops)} stop a training" if stops else "\nNothing stops a training.")
    for finding in stops:
        print(f"  {finding.name}: {finding.remedy or finding.text}")
    return len(stops)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", default="", metavar="YAML", help="check what it needs")
    parser.add_argument("--debug", action="store_true", help="show the full tracebacks of errors")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")
    arguments = parser.parse_args(argv)
    if arguments.debug:
        logger.addHandler(logging.StreamHandler())  # on the standard error
        logger.setLevel(logging.DEBUG)
    if arguments.opts and not arguments.config_file:
        parser.error("KEY VALUE pairs change a config: name one with --config-file")
    faulthandler.enable()  # a crash inside a compiled module still says where
    warnings.simplefilter("ignore")
    return 1 if report(examine(arguments.config_file, arguments.opts)) else 0


if __name__ == "__main__":
    sys.exit(main())
