"""Time and memory of competitors in one process, taken in turns so that a busy machine is the same for all."""

from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch


@dataclass
class Times:
    """Seconds of each round, by the clock and of all cores together."""

    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)

    def __add__(self, other: Times) -> Times:
        """Return the times of two parts of every round together."""
        parts = ((self.wall_s, other.wall_s), (self.cpu_s, other.cpu_s))
        return Times(*([a + b for a, b in zip(*pair, strict=True)] for pair in parts))

    def summary(self) -> dict[str, float]:
        """Return the medians."""
        return {"wall_s": round(median(self.wall_s), 4), "cpu_s": round(median(self.cpu_s), 4)}


def interleaved(
    competitors: Mapping[str, Callable[[], Any]],
    num_rounds: int,
    warm_ups: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, Times]:
    """Run every competitor, or a smaller case of it, once unmeasured and then once a round, in turns."""
    for compete in (warm_ups or competitors).values():
        compete()
        finish()
    times = {name: Times() for name in competitors}
    for _ in range(num_rounds):
        for name, compete in competitors.items():
            wall, cpu = time.perf_counter(), time.process_time()
            compete()
            finish()
            times[name].wall_s.append(time.perf_counter() - wall)
            times[name].cpu_s.append(time.process_time() - cpu)
    return times


def finish() -> None:
    """Wait for what an accelerator still has to do, which would be charged to the next competitor."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def ratio(slow: Times, fast: Times) -> dict[str, float]:
    """Return how many times as long the first takes: medians, lowest and highest over the rounds' own ratios."""
    pairs = [a / b for a, b in zip(slow.wall_s, fast.wall_s, strict=True)]
    cpu = [a / b for a, b in zip(slow.cpu_s, fast.cpu_s, strict=True)]
    found = {"wall": median(pairs), "lowest": min(pairs), "highest": max(pairs), "cpu": median(cpu)}
    return {name: round(value, 3) for name, value in found.items()}


def peak_memory_mib(compete: Callable[[], Any]) -> float:
    """Return by how much the resident memory rose at most above what was there (Linux)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_mib("VmRSS")
    compete()
    return _resident_mib("VmHWM") - before


def _resident_mib(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024
