"""Methods minillm and grpo: policy gradients on samples of the teacher-student mixture (arXiv:2306.08543)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from minillm.advantages import Credit, groups_with_signal, response_rewards, token_rewards, with_advantages
from minillm.distill_config import DistillConfig
from minillm.draws import Stream, permutation
from minillm.methods.interface import Recipe, Run, phase_indices
from minillm.objective import policy_terms, surrogate_loss
from minillm.rollout import collect_rollout
from minillm.schedules import scheduled_value
from minillm.task_rewards import TaskReward
from minillm.types import Experience, Rollout, TokenBlock, TokenLosses


def minillm_credit(config: DistillConfig) -> Credit:
    """Return the credit of MiniLLM: rewards from the next token on, beside the single-step term."""
    section, objective = config.minillm, config.objective
    return Credit(
        importance=objective.importance,
        returns_from=section.returns_from,
        length_normalize=objective.length_normalize,
        gamma=section.gamma,
        baseline=section.baseline,
        scale=section.scale,
        group_size=section.group_size,
    )


def grpo_credit(config: DistillConfig) -> Credit:
    """Return the credit of GRPO (arXiv:2402.03300): whole-response rewards, relative to those of the same prompt."""
    return Credit(
        importance=config.objective.importance,
        returns_from="response",
        length_normalize=config.objective.length_normalize,
        gamma=1.0,
        baseline="group_mean",
        scale=config.grpo.scale,
        group_size=config.grpo.group_size,
    )


@dataclass(frozen=True)
class _Sampled:
    """Groups of rollouts with their task rewards (B,), and which groups (G,) have rewards that differ."""

    rollout: Rollout
    task_rewards: Tensor
    signal: Tensor

    def replaced(self, groups: Sequence[int], fresh: _Sampled) -> _Sampled:
        """Return these with the given groups taken from `fresh`, group after group."""
        size = len(self.task_rewards) // len(self.signal)
        device = self.signal.device
        rows = torch.tensor([group * size + place for group in groups for place in range(size)], device=device)
        columns = {}
        for item in fields(self.rollout):
            left = item.name.startswith("prompt")
            old, new = (getattr(part.rollout, item.name) for part in (self, fresh))
            width = max(old.shape[1], new.shape[1])
            columns[item.name] = _widened(old, width, left).index_copy(0, rows, _widened(new, width, left))
        return _Sampled(
            Rollout(**columns),
            self.task_rewards.index_copy(0, rows, fresh.task_rewards),
            self.signal.index_copy(0, torch.tensor(groups, device=device), fresh.signal),
        )


class PolicyGradient:
    """Clipped policy updates on rollouts, with the exact single-step term weighted by `single_step_weight`."""

    def __init__(self, run: Run, credit: Credit, single_step_weight: float, task_reward: TaskReward | None) -> None:
        objective = run.config.objective
        self._run, self._credit, self._task_reward = run, credit, task_reward
        self._single_step_weight = single_step_weight
        in_float32 = run.config.rollout.temperature != 1 or objective.entropy_weight > 0
        self.recipe = Recipe(
            run.config.inner_epochs, objective.averaging, objective.language_model_weight, in_float32=in_float32
        )

    def observe(self, scores: Mapping[str, float]) -> None:
        """Nothing adapts."""

    def state(self) -> Mapping[str, Any]:
        """Return nothing: every phase is a function of its number and the weights."""
        return {}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Nothing to take."""

    def collect(self, phase: int) -> tuple[Experience, Mapping[str, float]]:
        """Return the rollouts of a phase with their advantages; the metrics are those before any refill."""
        run = self._run
        num_prompts = run.config.rollout.rollouts_per_phase // self._credit.group_size
        indices = phase_indices(len(run.data.rows), num_prompts, phase=phase, seed=run.seed)
        sampled = self._sampled(phase, indices, first_row_id=0)
        metrics = rollout_metrics(sampled.rollout, run.decoding.end_id)
        if self._task_reward is not None:
            metrics["reward/task_mean"] = float(sampled.task_rewards.mean()) / run.config.objective.task_reward_weight
        if run.config.objective.max_refills:
            sampled, metrics = self._refilled(phase, sampled, metrics, set(indices))
        task_rewards = sampled.task_rewards if self._task_reward else None
        return with_advantages(sampled.rollout, self._credit, task_rewards), metrics

    def _refilled(
        self, phase: int, sampled: _Sampled, metrics: dict[str, float], taken: Collection[int]
    ) -> tuple[_Sampled, dict[str, float]]:
        """Replace groups without signal by those of other prompts (DAPO's dynamic sampling, arXiv:2503.14476).

        At most `max_refills` times; groups that are still without signal then stay, under grpo with advantages of zero.
        """
        rows = permutation(self._run.seed, Stream.REFILL_ORDER, phase, len(self._run.data.rows))
        order = [row for row in rows if row not in taken]
        num_refills = 0
        while not sampled.signal.all() and num_refills < self._run.config.objective.max_refills and order:
            num_refills += 1
            groups = (~sampled.signal).nonzero().squeeze(1).tolist()[: len(order)]
            picked, order = order[: len(groups)], order[len(groups) :]
            first_row_id = num_refills * len(sampled.rollout.response_ids)
            sampled = sampled.replaced(groups, self._sampled(phase, picked, first_row_id))
        lost = float((~sampled.signal).sum())
        return sampled, metrics | {"rollout/refills": float(num_refills), "rollout/groups_without_signal": lost}

    def _sampled(self, phase: int, indices: Sequence[int], first_row_id: int) -> _Sampled:
        """Return the rollouts of groups that answer the given rows."""
        run, size = self._run, self._credit.group_size
        places = [index for index in indices for _ in range(size)]
        rollout = collect_rollout(
            run.actors,
            [run.data.rows[place].prompt_ids for place in places],
            run.decoding_of(phase),
            teacher_mix_alpha=self._alpha(phase),
            score_batch_tokens=run.config.optimizer.micro_batch_tokens,
            compute=run.compute,
            stopwatch=run.stopwatch,
            first_row_id=first_row_id,
            group_size=size,
        )
        task_rewards = self._task_rewards(rollout, places)
        rewards = token_rewards(rollout.teacher_logprobs, rollout.old_logprobs, rollout.response_mask)
        whole = response_rewards(rewards, rollout.response_mask, self._credit.length_normalize) + task_rewards
        return _Sampled(rollout, task_rewards, groups_with_signal(rollout, whole, size))

    def _alpha(self, phase: int) -> float:
        rollout = self._run.config.rollout
        ends = rollout.teacher_mix_alpha, rollout.teacher_mix_alpha_end
        return scheduled_value(rollout.teacher_mix_schedule, *ends, self._run.progress(phase))

    def _task_rewards(self, rollout: Rollout, places: Sequence[int]) -> Tensor:
        """Return the weighted task reward (B,) of each response, 0 without a task reward."""
        if self._task_reward is None:
            return torch.zeros(len(places), device=rollout.response_ids.device)
        pairs = zip(rollout.response_ids, rollout.response_mask, strict=True)
        texts = self._run.tokenizer.batch_decode([ids[kept] for ids, kept in pairs], skip_special_tokens=True)
        references = [self._run.data.rows[place].references for place in places]
        scores = [self._task_reward(*pair) for pair in zip(texts, references, strict=True)]
        weight = self._run.config.objective.task_reward_weight
        return weight * torch.tensor(scores, device=rollout.response_ids.device)

    def token_losses(self, block: TokenBlock) -> TokenLosses:
        """Return the surrogate loss of every token."""
        objective = self._run.config.objective
        return surrogate_loss(
            *block.tempered(self._run.config.rollout.temperature),
            block.token_ids,
            policy_terms(block.fields),
            clip_low=objective.clip_low,
            clip_high=objective.clip_high,
            single_step_weight=self._single_step_weight,
            entropy_weight=objective.entropy_weight,
        )


def _widened(values: Tensor, width: int, left: bool) -> Tensor:
    """Pad columns with zeros, which every mask leaves out."""
    extra = width - values.shape[1]
    trailing = (0, 0) * (values.ndim - 2)
    return pad(values, (*trailing, extra, 0) if left else (*trailing, 0, extra))


def rollout_metrics(rollout: Rollout, end_id: int) -> dict[str, float]:
    """Return means over tokens (rewards, importance) and over responses (length, share that ended)."""
    mask = rollout.response_mask
    rewards = token_rewards(rollout.teacher_logprobs, rollout.old_logprobs, mask)[mask]
    ratios = (rollout.old_logprobs - rollout.behavior_logprobs)[mask].exp()
    return {
        "reward/mean": float(rewards.mean()),
        "importance/mean": float(ratios.mean()),
        "importance/max": float(ratios.max()),
        "response/length_mean": float(mask.sum(dim=1).float().mean()),
        "response/end_rate": float(((rollout.response_ids == end_id) & mask).any(dim=1).float().mean()),
    }
