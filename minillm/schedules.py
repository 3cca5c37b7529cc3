"""How a quantity moves over a run: learning rates and the teacher's share in the mixture."""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "linear", "cosine"]


def scheduled_value(schedule: Schedule, start: float, end: float, progress: float) -> float:
    """Return the value at `progress` (0 = first step, 1 = last step); `end` is unused when constant."""
    if schedule == "constant":
        return start
    share = progress if schedule == "linear" else (1 - math.cos(math.pi * progress)) / 2
    return start + (end - start) * share


def warmed_up_rate(
    step: int, num_steps: int, *, peak: float, num_warmup_steps: int, schedule: Schedule, final_share: float
) -> float:
    """Return the learning rate of `step` (from 0): a linear rise to the peak, then the schedule down to its end."""
    if step < num_warmup_steps:
        return peak * (step + 1) / num_warmup_steps
    progress = (step - num_warmup_steps) / max(num_steps - 1 - num_warmup_steps, 1)
    return scheduled_value(schedule, peak, peak * final_share, min(progress, 1.0))
