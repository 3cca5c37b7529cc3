"""From log-probabilities to advantages: rewards, returns, length normalization, baselines, importance weights.

All tensors are (B, T) and detached; positions outside the response mask are 0 in every result.
Source: arXiv:2306.08543, sections 2.2 (single-step decomposition, teacher-mixed sampling, length normalization).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from minillm.types import Experience, Rollout

Importance = Literal["per_token", "per_decision", "none"]
ReturnsFrom = Literal["next", "current", "response"]

_STD_FLOOR = 1e-6  # never divides by zero
_ROUNDING = 1e-6  # of a reward in float32: differences below are told apart by the order of a sum only


@dataclass(frozen=True)
class Credit:
    """How the rewards of responses become advantages of their tokens.

    importance: weights of a token sampled from the mixture.
    returns_from: rewards from the next token on, from the current one on, or of the whole response (GRPO).
    length_normalize: the mean of those rewards instead of their sum.
    gamma: discount of later rewards; unused for the whole response.
    baseline, scale: what is taken off and divided by; of the batch, or of groups under `group_mean`.
    group_size: consecutive rows that answer one prompt.
    """

    importance: Importance
    returns_from: ReturnsFrom
    length_normalize: bool
    gamma: float
    baseline: Literal["none", "batch_mean", "group_mean"]
    scale: Literal["none", "std"]
    group_size: int


def token_rewards(teacher_logprobs: Tensor, old_logprobs: Tensor, response_mask: Tensor) -> Tensor:
    """Return r_t = log teacher - log student: positive where the teacher likes the token more."""
    return torch.where(response_mask, teacher_logprobs - old_logprobs, 0.0).detach()


def step_ratios(old_logprobs: Tensor, behavior_logprobs: Tensor, response_mask: Tensor) -> Tensor:
    """Return rho_t = student / mixture of each sampled token, at most 1 / (1 - alpha); 1 outside the mask."""
    log_ratio = torch.where(response_mask, old_logprobs - behavior_logprobs, 0.0)
    return log_ratio.exp().detach()


def prefix_weights(ratios: Tensor) -> Tensor:
    """Return W_t, the product of the ratios through t."""
    return ratios.cumprod(dim=1)


def single_step_weights(ratios: Tensor, importance: Importance) -> Tensor:
    """Return the weight of the single-step term: W_{t-1} under `per_decision` (exact), else 1."""
    if importance != "per_decision":
        return torch.ones_like(ratios)
    weights = prefix_weights(ratios)
    return torch.cat([torch.ones_like(weights[:, :1]), weights[:, :-1]], dim=1)


def discounted_returns(
    rewards: Tensor, response_mask: Tensor, *, returns_from: ReturnsFrom, length_normalize: bool, gamma: float
) -> Tensor:
    """Return the reward to go of each token, from the next one (or, to reproduce published code, the current one).

    With `length_normalize` it is the mean of the remaining rewards: numerator and denominator are discounted alike,
    and the return is 0 when none remain. From the "response" it is the sum (or mean) of all its rewards, the same at
    every token; past rewards add nothing to the expected gradient.
    """
    if returns_from == "response":
        totals = response_rewards(rewards, response_mask, length_normalize)[:, None].expand_as(rewards)
        return torch.where(response_mask, totals, 0.0)
    totals = _reward_to_go(rewards, gamma)
    if length_normalize:
        counts = _reward_to_go(response_mask.to(rewards.dtype), gamma)
        totals = torch.where(counts > 0, totals / counts.clamp(min=1), 0.0)
    if returns_from == "next":
        totals = torch.cat([totals[:, 1:], torch.zeros_like(totals[:, :1])], dim=1)
    return torch.where(response_mask, totals, 0.0)


def response_rewards(rewards: Tensor, response_mask: Tensor, length_normalize: bool) -> Tensor:
    """Return the reward (B,) of each whole response: the sum of its tokens' rewards, or their mean."""
    totals = torch.where(response_mask, rewards, 0.0).sum(dim=1)
    return totals / response_mask.sum(dim=1) if length_normalize else totals


def _reward_to_go(rewards: Tensor, gamma: float) -> Tensor:
    total = torch.zeros_like(rewards[:, 0])
    columns = []
    for column in reversed(rewards.unbind(dim=1)):
        total = column + gamma * total
        columns.append(total)
    return torch.stack(columns[::-1], dim=1)


def normalized_advantages(
    returns: Tensor, response_mask: Tensor, credit: Credit, *, baseline_weights: Tensor
) -> Tensor:
    """Return (return - weight * baseline) / scale over real tokens only.

    The statistics are those of the batch, or of each group of consecutive rows under `group_mean`: over tokens, or over
    responses when a return belongs to the whole response. `baseline_weights` is W_t under `per_decision` importance,
    else 1: a constant times the score of a token has mean zero only under the weight that turns the sampling
    distribution of its prefix and itself into the student's.
    """
    counted = response_mask.clone()
    if credit.returns_from == "response":
        counted[:, 1:] = False
    num_rows = credit.group_size if credit.baseline == "group_mean" else returns.shape[0]
    parts = zip(returns.split(num_rows), counted.split(num_rows), baseline_weights.split(num_rows), strict=True)
    center, is_scaled = credit.baseline != "none", credit.scale == "std"
    normalized = [_normalized(part, kept, weights, center, is_scaled) for part, kept, weights in parts]
    return torch.where(response_mask, torch.cat(normalized), 0.0)


def groups_with_signal(rollout: Rollout, rewards: Tensor, group_size: int) -> Tensor:
    """Return which groups (G,) hold responses that differ and whose rewards (B,) differ by more than rounding.

    Equal responses are told by their tokens: in reduced precision their rewards differ with their place in the batch.
    """
    tokens = torch.where(rollout.response_mask, rollout.response_ids, -1).unflatten(0, (-1, group_size))
    groups = rewards.double().unflatten(0, (-1, group_size))
    spread, size = groups.amax(dim=1) - groups.amin(dim=1), groups.abs().amax(dim=1).clamp(min=1)
    differ = (tokens != tokens[:, :1]).flatten(1).any(dim=1)
    signal: Tensor = differ & (spread > _ROUNDING * size)
    return signal


def _normalized(returns: Tensor, counted: Tensor, weights: Tensor, center: bool, scale: bool) -> Tensor:
    values = returns[counted].double()
    mean = values.mean()
    advantages = returns - weights * mean if center else returns
    if scale:
        advantages = advantages / (values - mean).square().mean().sqrt().clamp(min=_STD_FLOOR)
    return advantages.to(returns.dtype)


def with_advantages(rollout: Rollout, credit: Credit, task_rewards: Tensor | None = None) -> Experience:
    """Return the rollout with advantages, ratios and weights under the given choices.

    task_rewards: (B,), one a whole response, in the units of the returns. Every token of the response may have earned
    it, so it is added to the return of each, undiscounted, whatever `returns_from` and `length_normalize` are.
    """
    mask = rollout.response_mask
    ratios = step_ratios(rollout.old_logprobs, rollout.behavior_logprobs, mask)
    weights = prefix_weights(ratios) if credit.importance == "per_decision" else torch.ones_like(ratios)
    rewards = token_rewards(rollout.teacher_logprobs, rollout.old_logprobs, mask)
    returns = discounted_returns(
        rewards * weights,
        mask,
        returns_from=credit.returns_from,
        length_normalize=credit.length_normalize,
        gamma=credit.gamma,
    )
    if task_rewards is not None:
        returns = torch.where(mask, returns + weights[:, -1:] * task_rewards[:, None], 0.0)
    advantages = normalized_advantages(returns, mask, credit, baseline_weights=weights)
    if credit.returns_from == "response" and credit.baseline == "group_mean":
        signal = groups_with_signal(rollout, returns[:, 0], credit.group_size)
        advantages = torch.where(signal.repeat_interleave(credit.group_size)[:, None], advantages, 0.0)
    return Experience(
        **{item.name: getattr(rollout, item.name) for item in fields(rollout)},
        advantages=advantages,
        ratios=ratios if credit.importance == "per_token" else torch.ones_like(ratios),
        single_step_weights=single_step_weights(ratios, credit.importance),
    )
