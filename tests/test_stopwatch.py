from __future__ import annotations

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


def test_the_peak_memory_of_the_process_follows_what_it_holds() -> None:
    before = peak_memory_mib(torch.device("cpu"))
    size = int(before) + 50  # the peak may lie above what is held now
    held = torch.ones(size, 2**18)  # MiB
    assert before + 30 < peak_memory_mib(torch.device("cpu")) < before + size + 100
    assert held.numel() == size * 2**18
