"""Samples the memory of a process and its descendants."""

from __future__ import annotations

import threading
import time

import psutil

_EVERY_S = 0.5
_MIB = 2**20


class PeakMemory:
    """The largest sum of resident set sizes seen in a tree of processes, sampled every 0.5 s.

    Plain RSS: a page that processes share is counted once for each of them, and a peak between two samples is missed.
    """

    def __init__(self) -> None:
        self._peak_bytes = 0

    @property
    def peak_mib(self) -> float:
        """Return the peak in MiB, so far."""
        return round(self._peak_bytes / _MIB, 1)

    def watch(self, pid: int) -> None:
        """Sample a process with its descendants, in the background, until it has ended."""
        threading.Thread(target=self._sample, args=(pid,), name="peak-memory", daemon=True).start()

    def _sample(self, pid: int) -> None:
        while total_bytes := _tree_rss_bytes(pid):
            self._peak_bytes = max(self._peak_bytes, total_bytes)
            time.sleep(_EVERY_S)


def _tree_rss_bytes(pid: int) -> int:
    """Return the sum over a process and its descendants; 0 when it has ended."""
    try:
        process = psutil.Process(pid)
        return sum(map(_rss_bytes, [process, *process.children(recursive=True)]))
    except psutil.Error:
        return 0


def _rss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0
