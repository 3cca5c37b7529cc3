"""The knobs of the policy-gradient methods, from the params to each token: against plain Python, token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch
from torch import Tensor

from minillm.distill_config import DistillConfig
from minillm.methods import make_method, policy
from minillm.types import Experience, Rollout
from tests.method_runs import run_of, settings

LENGTHS = (6, 2, 5, 1, 6, 4, 3, 2)  # responses of random models rarely end: they are cut
ALPHAS = {"teacher_mix_alpha": 0.4, "teacher_mix_alpha_end": 0.4}

# Every knob away from its default, in turns, so that none can stand in for another.
MINILLM = [
    ({"returns_from": "current", "gamma": 0.8, "baseline": "none", "scale": "std"}, {"importance": "none"}),
    ({"gamma": 0.7, "group_size": 4}, {"importance": "per_decision", "length_normalize": False}),
    ({"returns_from": "current", "gamma": 0.9, "baseline": "none"}, {"importance": "per_decision"}),
    ({"baseline": "group_mean", "scale": "std", "group_size": 2}, {"length_normalize": False}),
    ({"scale": "std", "group_size": 2}, {"importance": "per_decision"}),
    ({"baseline": "group_mean", "group_size": 4, "gamma": 0.6}, {}),
]


@pytest.fixture(autouse=True)
def ragged(monkeypatch: pytest.MonkeyPatch) -> None:
    real = policy.collect_rollout

    def cut(*arguments: Any, **options: Any) -> Rollout:
        rollout = real(*arguments, **options)
        columns = torch.arange(rollout.response_mask.shape[1])
        kept = columns < torch.tensor(LENGTHS[: len(rollout.response_mask)])[:, None]
        return replace(rollout, response_mask=rollout.response_mask & kept)

    monkeypatch.setattr(policy, "collect_rollout", cut)


def experience_of(config: DistillConfig) -> Experience:
    experience, _ = make_method(run_of(config)).collect(1)
    assert isinstance(experience, Experience)
    return experience


def by_row(experience: Experience, values: Tensor) -> list[list[float]]:
    return [row[kept].tolist() for row, kept in zip(values, experience.response_mask, strict=True)]


def rewards_and_ratios(experience: Experience) -> tuple[list[list[float]], list[list[float]]]:
    rewards = by_row(experience, experience.teacher_logprobs - experience.old_logprobs)
    return rewards, by_row(experience, (experience.old_logprobs - experience.behavior_logprobs).exp())


def return_of(rewards: Sequence[float], first: int, gamma: float, length_normalize: bool) -> float:
    discounts = [gamma ** (place - first) for place in range(first, len(rewards))]
    total = sum(discount * reward for discount, reward in zip(discounts, rewards[first:], strict=True))
    return total / sum(discounts) if length_normalize and discounts else total


def relative(rows: list[list[float]], weights: list[list[float]], config: DistillConfig) -> list[list[float]]:
    """Take the baseline off and divide by the scale, over the tokens of a group or of the batch."""
    section = config.minillm
    size = section.group_size if section.baseline == "group_mean" else len(rows)
    found = []
    for row, row_weights in zip(range(len(rows)), weights, strict=True):
        first = row - row % size
        values = [value for part in rows[first : first + size] for value in part]
        mean = fmean(values) if section.baseline != "none" else 0.0
        scale = pstdev(values) if section.scale == "std" else 1.0
        found.append([(value - weight * mean) / scale for value, weight in zip(rows[row], row_weights, strict=True)])
    return found


@pytest.mark.parametrize(("section", "objective"), MINILLM)
def test_every_knob_of_minillm_reaches_the_tokens(section: dict[str, Any], objective: dict[str, Any]) -> None:
    config = settings("minillm", minillm=section, objective=objective, rollout=ALPHAS)
    experience, importance = experience_of(config), config.objective.importance
    rewards, ratios = rewards_and_ratios(experience)
    assert [len(row) for row in rewards] == list(LENGTHS)
    is_exact = importance == "per_decision"
    weights = [[math.prod(row[: t + 1]) if is_exact else 1.0 for t in range(len(row))] for row in ratios]
    weighted = [[r * w for r, w in zip(*pair, strict=True)] for pair in zip(rewards, weights, strict=True)]
    skipped = 1 if config.minillm.returns_from == "next" else 0
    knobs = config.minillm.gamma, config.objective.length_normalize
    returns = [[return_of(row, t + skipped, *knobs) for t in range(len(row))] for row in weighted]
    expected = {
        "advantages": relative(returns, weights, config),
        "ratios": ratios if importance == "per_token" else [[1.0] * len(row) for row in ratios],
        "single_step_weights": [[1.0, *row[:-1]] if is_exact else [1.0] * len(row) for row in weights],
    }
    for name, rows in expected.items():
        for produced, wanted in zip(by_row(experience, getattr(experience, name)), rows, strict=True):
            assert produced == pytest.approx(wanted, rel=1e-4, abs=1e-5), name


@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("length_normalize", [False, True])
def test_a_reward_of_grpo_is_the_whole_responses_relative_to_its_group(scale: str, length_normalize: bool) -> None:
    config = settings("grpo", grpo={"scale": scale}, objective={"length_normalize": length_normalize})
    experience = experience_of(config)
    rewards, _ = rewards_and_ratios(experience)
    totals = [fmean(row) if length_normalize else sum(row) for row in rewards]
    for first in (0, 4):
        group = totals[first : first + 4]
        spread = pstdev(group) if scale == "std" else 1.0
        for row in range(first, first + 4):
            expected = [(totals[row] - fmean(group)) / spread] * LENGTHS[row]
            assert by_row(experience, experience.advantages)[row] == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(("schedule", "expected"), [("linear", 0.2), ("cosine", 0.1 + 0.4 * (1 - 0.5**0.5) / 2)])
def test_the_teachers_share_goes_from_end_to_end_as_scheduled(schedule: str, expected: float) -> None:
    ends = {"teacher_mix_alpha": 0.1, "teacher_mix_alpha_end": 0.5, "teacher_mix_schedule": schedule}
    method = make_method(run_of(settings("minillm", num_phases=5, rollout=ends)))
    assert isinstance(method, policy.PolicyGradient)
    assert [method._alpha(phase) for phase in (1, 2, 3, 5)] == pytest.approx([0.1, expected, 0.3, 0.5])
