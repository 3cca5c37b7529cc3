"""Metrics on their way to MLflow: checked, stamped with their time, kept until they are sent in batches."""

from __future__ import annotations

import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from itertools import islice

Point = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step

_SEND_EVERY_STEPS = 20
_SEND_EVERY_S = 10.0
_BATCH_POINTS = 1000  # MLflow's limit of one request
_MAX_POINTS = 200_000  # of one run, kept while MLflow is lost; the oldest go first


class MetricBuffer:
    """Points that wait, by run."""

    def __init__(self) -> None:
        self._points: dict[str, deque[Point]] = defaultdict(lambda: deque(maxlen=_MAX_POINTS))
        self._num_steps = 0
        self._last_sent_s = time.monotonic()

    def add(self, run_id: str, points: Sequence[Point]) -> None:
        """Let the points of one step wait."""
        self._points[run_id] += points
        self._num_steps += 1

    def is_due(self) -> bool:
        """Return whether enough steps or seconds have passed to send."""
        return self._num_steps >= _SEND_EVERY_STEPS or time.monotonic() - self._last_sent_s >= _SEND_EVERY_S

    def send(self, deliver: Callable[[str, list[Point]], bool]) -> None:
        """Deliver what waits, in batches; what is not delivered goes on waiting."""
        self._num_steps, self._last_sent_s = 0, time.monotonic()
        for run_id, points in self._points.items():
            while points:
                batch = list(islice(points, _BATCH_POINTS))
                if not deliver(run_id, batch):
                    return
                for _ in batch:
                    points.popleft()


def checked_points(step: int, metrics: Mapping[str, float]) -> list[Point]:
    """Return the points of one step, made now; raises ValueError for NaN and infinity (MLflow stores 1.8e308)."""
    now_ms = time.time_ns() // 1_000_000
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"metric {name} is {value} at step {step}; a finite number is needed")
    return [(name, float(value), now_ms, step) for name, value in metrics.items()]
