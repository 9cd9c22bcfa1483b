"""Compares variants in one run: interleaved, medians, and what each needs of memory.

Machines are noisy and differ, so what is reported is the ratio of two variants that took turns.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import torch
from tabulate import tabulate
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Row:
    """One measured figure.

    Attributes:
        name: what was measured.
        value: in ``unit``.
        unit: s, MiB, images/s, ...
        baseline: the figure it is compared with, in the same unit; None = there is none.
        ratio: value over baseline; below 1 is better for times and memory.
        device: name of the hardware.
    """

    name: str
    value: float
    unit: str
    baseline: float | None = None
    ratio: float | None = None
    device: str = "cpu"


@dataclass(frozen=True)
class Sample:
    """Medians over the repeats of one variant: seconds, and MiB above what was held before."""

    seconds: float
    mebibytes: float


def compare(
    variants: Mapping[str, Callable[[], object]], *, device: str, repeats: int, warmup: int = 1
) -> dict[str, Sample]:
    """Runs the variants in turn, A B A B ..., and returns the medians of each.

    The first ``warmup`` rounds do not count. Half of the rounds run in reverse order, so that no
    variant always follows the same other one.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    memory: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(-warmup, repeats):
        order = list(variants) if repeat % 2 else list(reversed(variants))
        for name in order:
            taken, needed = measure(variants[name], device)
            if repeat >= 0:
                seconds[name].append(taken)
                memory[name].append(needed)
    if not device.startswith("cuda"):
        memory = {name: [_peak_memory(call)] for name, call in variants.items()}
    return {
        name: Sample(statistics.median(seconds[name]), statistics.median(memory[name]))
        for name in variants
    }


def measure(call: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds of one call, and on a GPU its peak MiB above the start; the device is done before and
    after."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - held
        return start.elapsed_time(end) / 1000, peak / 2**20
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin, 0.0


def _peak_memory(call: Callable[[], object]) -> float:
    """MiB of tensors on the CPU at the peak, above the start of one call: the sum of what torch
    takes and gives back. (What the process holds says little: it keeps freed memory.)"""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        call()
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate((size for _, size in changes), initial=0)) / 2**20


def against(name: str, samples: Mapping[str, Sample], baseline: str, device: str) -> list[Row]:
    """Time and memory of one variant over those of the baseline."""
    mine, theirs, hardware = samples[name], samples[baseline], device_name(device)
    return [
        row(f"{name} / {baseline}", mine.seconds, "s", theirs.seconds, hardware),
        row(f"{name} / {baseline}, peak memory", mine.mebibytes, "MiB", theirs.mebibytes, hardware),
    ]


def row(name: str, value: float, unit: str, baseline: float | None, hardware: str) -> Row:
    ratio = value / baseline if baseline else None
    return Row(name, value, unit, baseline, ratio, hardware)


def report(rows: Sequence[Row], file: Path | None) -> None:
    """Prints the table, and writes JSON where asked to."""
    cells = [(r.name, r.value, r.unit, r.baseline, r.ratio) for r in rows]
    headers = ["what", "value", "unit", "baseline", "ratio"]
    print(tabulate(cells, headers=headers, floatfmt=".4g", missingval="-"))
    if rows:
        print(f"on {rows[0].device}; ratio = value / baseline")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps([asdict(r) for r in rows], indent=2) + "\n")


def device_name(device: str) -> str:
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return "cpu"


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text().splitlines() if file.exists() else []
