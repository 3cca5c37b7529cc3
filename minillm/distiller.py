"""The training loop of MiniLLM (arXiv:2306.08543, algorithm 1): phases of rollout, scoring and clipped updates."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.advantages import token_rewards, with_advantages
from minillm.config import DistillConfig
from minillm.device import Compute
from minillm.draws import Stream, permutation
from minillm.generation import Decoding
from minillm.rollout import Actors, collect_rollout
from minillm.schedules import scheduled_value
from minillm.types import Rollout, StepReport
from minillm.update import Updater

Validate = Callable[[Actors], Mapping[str, float]]


@dataclass(frozen=True)
class DistillData:
    """What a run learns from.

    prompts: token ids of the training prompts.
    corpus: packed plain-text blocks (K, L) for the language-model loss; may be empty when its weight is 0.
    """

    prompts: Sequence[Sequence[int]]
    corpus: Tensor


def distill(
    student: Any,
    teacher: Any,
    data: DistillData,
    validate: Validate,
    *,
    config: DistillConfig,
    seed: int,
    end_id: int,
    pad_id: int,
    compute: Compute,
) -> Iterator[StepReport]:
    """Train the student in place, yielding a report per phase; that of step 0 holds the validation before training.

    `validate` returns `validation/...` metrics; `is_best` marks the best `config.validation.metric` so far.
    """
    actors = make_actors(student, teacher, compute)
    updater = Updater(actors, data.corpus, config, seed, compute)
    best = BestMetric(config.validation.metric)
    first = validate(actors)
    yield StepReport(0, first, is_best=best.improves(first))
    for phase in range(1, config.num_phases + 1):
        start = time.perf_counter()
        decoding = _decoding(config, seed, phase, end_id, pad_id)
        rollout = _collect(actors, data.prompts, decoding, config, compute)
        metrics = rollout_metrics(rollout, end_id) | _times("rollout", start, int(rollout.response_mask.sum()))
        start = time.perf_counter()
        experience = with_advantages(rollout, objective=config.objective, group_size=config.rollout.group_size)
        metrics |= updater.update(experience, phase)
        refresh_sampler(actors)
        metrics |= _times("update", start, config.inner_epochs * int(rollout.response_mask.sum()))
        validated = phase % config.validation.every_phases == 0 or phase == config.num_phases
        scores = validate(actors) if validated else {}
        yield StepReport(phase, metrics | dict(scores), is_best=validated and best.improves(scores))


class BestMetric:
    """Remembers the best value of a validation metric: lowest reverse KL or highest Rouge-L; NaN is never best."""

    def __init__(self, metric: str) -> None:
        self._name = f"validation/{metric}"
        self._sign = -1.0 if metric == "reverse_kl" else 1.0
        self._best = float("-inf")

    def improves(self, metrics: Mapping[str, float]) -> bool:
        """Return whether the metrics hold the best value so far, and remember it."""
        value = self._sign * metrics[self._name]
        if not value > self._best:
            return False
        self._best = value
        return True


def make_actors(student: Any, teacher: Any, compute: Compute) -> Actors:
    """Return the models of a run; the sampler is a copy of the student in the arithmetic of decoding."""
    same = compute.dtype == torch.float32
    return Actors(student, student if same else copy.deepcopy(student).to(compute.dtype), teacher)


@torch.no_grad()
def refresh_sampler(actors: Actors) -> None:
    """Copy the student's weights into the sampler."""
    pairs = zip(actors.sampler.parameters(), actors.student.parameters(), strict=True)
    for target, source in pairs:
        target.copy_(source)


def _decoding(config: DistillConfig, seed: int, phase: int, end_id: int, pad_id: int) -> Decoding:
    return Decoding(
        seed=seed,
        step=phase,
        batch_size=config.rollout.batch_size,
        temperature=config.rollout.temperature,
        max_tokens=config.rollout.max_response_tokens,
        end_id=end_id,
        pad_id=pad_id,
    )


def _collect(
    actors: Actors, prompts: Sequence[Sequence[int]], decoding: Decoding, config: DistillConfig, compute: Compute
) -> Rollout:
    rollout, num_phases = config.rollout, config.num_phases
    num_prompts = rollout.rollouts_per_phase // rollout.group_size
    picked = phase_prompts(prompts, num_prompts, phase=decoding.step, seed=decoding.seed or 0)
    return collect_rollout(
        actors,
        [prompt for prompt in picked for _ in range(rollout.group_size)],
        decoding,
        teacher_mix_alpha=scheduled_value(
            rollout.teacher_mix_schedule,
            rollout.teacher_mix_alpha,
            rollout.teacher_mix_alpha_end,
            (decoding.step - 1) / max(num_phases - 1, 1),
        ),
        score_batch_size=config.optimizer.micro_batch_size,
        compute=compute,
    )


def phase_prompts(prompts: Sequence[Sequence[int]], num_prompts: int, *, phase: int, seed: int) -> list[Sequence[int]]:
    """Return the prompts of a phase (from 1): consecutive pieces of epochs, each epoch shuffled anew."""
    first = (phase - 1) * num_prompts
    epochs, places = zip(*(divmod(index, len(prompts)) for index in range(first, first + num_prompts)), strict=True)
    orders = {epoch: permutation(seed, Stream.PROMPT_ORDER, epoch, len(prompts)) for epoch in set(epochs)}
    return [prompts[orders[epoch][place]] for epoch, place in zip(epochs, places, strict=True)]


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


def _times(name: str, start: float, num_tokens: int) -> dict[str, float]:
    elapsed_s = time.perf_counter() - start
    return {f"time/{name}_s": elapsed_s, f"time/{name}_tokens_per_s": num_tokens / elapsed_s}
