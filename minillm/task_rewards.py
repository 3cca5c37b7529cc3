"""Task rewards by name: functions of a response text and its references, that a policy gradient may add to its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from minillm.evaluation.rouge import rouge_l

_POINTS = 100.0

TaskReward = Callable[[str, Sequence[str]], float]


def rouge_l_share(response: str, references: Sequence[str]) -> float:
    """Return Rouge-L F1 as a share, 0 to 1, so that its weight is in nats like the teacher's rewards."""
    return rouge_l(response, references) / _POINTS


TASK_REWARDS: dict[str, TaskReward] = {"rougeL": rouge_l_share}
"""The values of `distill.objective.task_reward` beside "none"."""
