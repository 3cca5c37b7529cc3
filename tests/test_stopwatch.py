from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from minillm import stopwatch
from minillm.stopwatch import Stopwatch, peak_memory_mib


def test_parts_add_up_and_count_for_themselves_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """rollout from 0 to 10 with score from 2 to 5 within it, then score from 20 to 21."""
    clock = iter([0.0, 2.0, 5.0, 10.0, 20.0, 21.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    with watch.part("rollout"), watch.part("score"):
        pass
    with watch.part("score"):
        pass
    assert watch.taken() == {"rollout": 7.0, "score": 4.0}
    assert watch.taken() == {}


def test_a_part_that_fails_is_counted_too(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Any = iter([0.0, 3.0])
    monkeypatch.setattr(stopwatch.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch()
    with pytest.raises(ZeroDivisionError), watch.part("update"):
        raise ZeroDivisionError
    assert watch.taken() == {"update": 3.0}


def test_the_peak_memory_lies_between_what_is_held_and_what_the_machine_has() -> None:
    """So the unit is right: a factor of 1024 would leave this range on either side."""
    held = bytearray(64 * 2**20)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    resident_mib = int(status["VmRSS"].split()[0]) / 1024
    machine_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**20
    assert len(held) / 2**20 < resident_mib <= peak_memory_mib(torch.device("cpu")) + 1 < machine_mib


def test_counts_add_up_and_start_anew() -> None:
    watch = Stopwatch()
    watch.count(calls=2, tokens=5)
    watch.count(calls=1)
    assert watch.counted() == {"calls": 3, "tokens": 5}
    assert watch.counted() == {}
