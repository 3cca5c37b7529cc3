"""Collect one phase of experience: sample from the mixture, then score once with each model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minillm.device import Compute
from minillm.generation import Decoding, all_responses, generate_responses
from minillm.logprobs import head_logits, mixture_logprobs, response_hidden, token_logprobs
from minillm.prompts import pad_left, pad_right
from minillm.types import Rollout


@dataclass(frozen=True)
class Actors:
    """The models of a phase.

    student: float32 master weights, trained.
    sampler: the student's weights in the arithmetic of decoding; the student itself in float32.
    teacher: frozen.
    """

    student: Any
    sampler: Any
    teacher: Any


def collect_rollout(
    actors: Actors,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    teacher_mix_alpha: float,
    score_batch_size: int,
    compute: Compute,
) -> Rollout:
    """Return one response per prompt, in the prompts' order, with the log-probabilities the update needs.

    The row's place in `prompts` keys its draws.
    """
    responses = all_responses(
        generate_responses(actors.sampler, prompts, range(len(prompts)), decoding, actors.teacher, teacher_mix_alpha)
    )
    parts = *pad_left(prompts, decoding.pad_id), *pad_right(responses, decoding.pad_id)
    tensors = [part.to(compute.device) for part in parts]
    scores = _Scores.empty(tensors[3], actors.teacher.config.hidden_size, compute)
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]) + len(responses[row]))
    for start in range(0, len(order), score_batch_size):
        rows = torch.tensor(order[start : start + score_batch_size], device=compute.device)
        scores.fill(actors, tensors, rows, decoding.temperature, compute)
    prompt_ids, prompt_mask, response_ids, response_mask = tensors
    return Rollout(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        response_ids=response_ids,
        response_mask=response_mask,
        old_logprobs=scores.student,
        teacher_logprobs=scores.teacher,
        behavior_logprobs=mixture_logprobs(scores.teacher, scores.student, teacher_mix_alpha),
        teacher_hidden=scores.teacher_hidden,
    )


@dataclass(frozen=True)
class _Scores:
    student: Tensor
    teacher: Tensor
    teacher_hidden: Tensor

    @staticmethod
    def empty(response_mask: Tensor, hidden_size: int, compute: Compute) -> _Scores:
        shape = response_mask.shape
        student, teacher = (torch.zeros(shape, device=compute.device) for _ in range(2))
        hidden = torch.zeros(*shape, hidden_size, dtype=compute.dtype, device=compute.device)
        return _Scores(student, teacher, hidden)

    @torch.no_grad()
    def fill(self, actors: Actors, tensors: list[Tensor], rows: Tensor, temperature: float, compute: Compute) -> None:
        """Score the given rows with both models, in the arithmetic of the update."""
        prompt_ids, prompt_mask, response_ids, response_mask = trimmed([part[rows] for part in tensors])
        num_tokens = response_ids.shape[1]
        for model, logprobs in ((actors.student, self.student), (actors.teacher, self.teacher)):
            with compute.autocast():
                hidden = response_hidden(model, prompt_ids, prompt_mask, response_ids, response_mask)
                logits = head_logits(model, hidden[response_mask]) / temperature
            values = logprobs.new_zeros(response_ids.shape)
            values[response_mask] = token_logprobs(logits, response_ids[response_mask])
            logprobs[rows, :num_tokens] = values
        self.teacher_hidden[rows, :num_tokens] = hidden.to(compute.dtype)


def trimmed(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return prompt ids, prompt mask, response ids and response mask without columns that are all padding."""
    prompt_ids, prompt_mask, response_ids, response_mask = tensors
    prompt, response = prompt_mask.any(dim=0), response_mask.any(dim=0)
    return [prompt_ids[:, prompt], prompt_mask[:, prompt], response_ids[:, response], response_mask[:, response]]
