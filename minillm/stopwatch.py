"""What the parts of a phase take, and how often something happens in it."""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

RSS_UNITS_PER_MIB = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss: bytes on macOS, KiB elsewhere


class Stopwatch:
    """Adds up seconds by the clock, by the name of a part, and counts.

    A part within another counts for itself alone.
    """

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._counts: Counter[str] = Counter()
        self._inner_s = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what the body takes for `name`."""
        start = time.perf_counter()
        self._inner_s.append(0.0)
        try:
            yield
        finally:
            elapsed_s = time.perf_counter() - start
            self._seconds[name] += elapsed_s - self._inner_s.pop()
            self._inner_s[-1] += elapsed_s

    def taken(self) -> dict[str, float]:
        """Return the seconds by name, and start anew."""
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds

    def count(self, **counts: int) -> None:
        """Add to the counts by name."""
        self._counts.update(counts)

    def counted(self) -> Counter[str]:
        """Return the counts by name, and start anew."""
        counts, self._counts = self._counts, Counter()
        return counts


def peak_memory_mib(device: torch.device) -> float:
    """Return the most memory so far: of the accelerator's allocator, or of the process."""
    if device.type == "cuda":
        import torch

        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / RSS_UNITS_PER_MIB
