"""Baseline and scale of returns: what counts in their statistics, by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from minillm.advantages import normalized_advantages
from minillm.methods.policy import minillm_credit
from tests.tiny_run import DEFAULTS


def statistics_of(
    returns: Tensor, mask: Tensor, baseline: Any, scale: Any, group_size: int, returns_from: Any = "next"
) -> Tensor:
    changes = {"baseline": baseline, "scale": scale, "group_size": group_size, "returns_from": returns_from}
    credit = replace(minillm_credit(DEFAULTS), **changes)
    return normalized_advantages(returns, mask, credit, baseline_weights=torch.ones_like(returns))


def test_statistics_of_advantages_leave_padding_out() -> None:
    """Rows (1, 3, pad) and (5, pad, pad): mean 3, variance 8 / 3, by hand."""
    returns = torch.tensor([[1.0, 3.0, 99.0], [5.0, 99.0, 99.0]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    centred = statistics_of(returns, mask, "batch_mean", "none", 1)
    assert centred.tolist() == [[-2, 0, 0], [2, 0, 0]]
    scaled = statistics_of(returns, mask, "batch_mean", "std", 1)
    assert float(scaled[1, 0]) == pytest.approx(2 / (8 / 3) ** 0.5)


def test_group_statistics_are_those_of_consecutive_rows() -> None:
    returns = torch.tensor([[1.0], [3.0], [10.0], [20.0]])
    mask = torch.ones_like(returns, dtype=torch.bool)
    result = statistics_of(returns, mask, "group_mean", "std", 2)
    assert result.squeeze(1).tolist() == pytest.approx([-1, 1, -1, 1])


def test_statistics_of_whole_responses_count_each_response_once() -> None:
    """Rewards 2 (three tokens) and 8 (one token): mean 5, not 3.5; standard deviation 3, by hand."""
    returns = torch.tensor([[2.0, 2.0, 2.0], [8.0, 0.0, 0.0]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    result = statistics_of(returns, mask, "group_mean", "std", 2, returns_from="response")
    assert result.tolist() == [[-1, -1, -1], [1, 0, 0]]


def test_a_group_without_signal_gives_zero_not_a_crash() -> None:
    returns = torch.full((2, 2), 3.0)
    mask = torch.ones(2, 2, dtype=torch.bool)
    result = statistics_of(returns, mask, "group_mean", "std", 2)
    assert torch.equal(result, torch.zeros(2, 2))
