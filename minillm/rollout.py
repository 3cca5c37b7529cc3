"""Collect one phase of experience: sample from the mixture, then score once with each model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from minillm.device import Compute
from minillm.generation import Decoding, all_responses, generate_responses
from minillm.heads import Head, Readout, logit_blocks
from minillm.logprobs import mixture_logprobs, response_hidden, token_logprobs
from minillm.prompts import pad_left, pad_right
from minillm.sampling import decodable
from minillm.types import Rollout, ScoredTexts, Texts


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

    @cached_property
    def teacher_sampler(self) -> Any:
        """Return the teacher as a decoder reads it, prepared once: its weights stay as they are."""
        return decodable(self.teacher)


def collect_rollout(
    actors: Actors,
    prompts: Sequence[Sequence[int]],
    decoding: Decoding,
    *,
    teacher_mix_alpha: float,
    score_batch_size: int,
    compute: Compute,
    first_row_id: int = 0,
    group_size: int = 1,
) -> Rollout:
    """Return one response per prompt, in the prompts' order, with the log-probabilities the update needs.

    The row's place in `prompts`, counted from `first_row_id`, keys its draws. Rows that answer one prompt (groups of
    `group_size`) are sampled independently of each other.
    """
    row_ids = range(first_row_id, first_row_id + len(prompts))
    teacher = actors.teacher_sampler if teacher_mix_alpha > 0 else None
    responses = all_responses(
        generate_responses(actors.sampler, prompts, row_ids, decoding, teacher, teacher_mix_alpha, group_size)
    )
    texts = padded_texts(prompts, responses, decoding.pad_id, compute)
    scores = _Scores.empty(texts.response_mask, _state_size(actors.teacher), compute)
    for rows in _by_length(texts, score_batch_size):
        scores.fill(actors, texts, rows, decoding.temperature, compute)
    return Rollout(
        **vars(texts),
        old_logprobs=scores.student,
        teacher_logprobs=scores.teacher,
        behavior_logprobs=mixture_logprobs(scores.teacher, scores.student, teacher_mix_alpha),
        teacher_hidden=scores.teacher_hidden,
    )


def padded_texts(
    prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int, compute: Compute
) -> Texts:
    """Return prompts and responses as padded tensors on the device."""
    parts = *pad_left(prompts, pad_id), *pad_right(responses, pad_id)
    return Texts(*(part.to(compute.device) for part in parts))


@torch.no_grad()
def scored_by_teacher(teacher: Any, texts: Texts, batch_size: int, compute: Compute) -> ScoredTexts:
    """Return the texts with the teacher's states, from one pass over each."""
    shape = *texts.response_mask.shape, _state_size(teacher)
    states = torch.zeros(shape, dtype=compute.dtype, device=compute.device)
    for rows in _by_length(texts, batch_size):
        hidden = _states(teacher, texts.select(rows), compute)
        states[rows, : hidden.shape[1]] = hidden.to(compute.dtype)
    return ScoredTexts(**vars(texts), teacher_hidden=states)


def _state_size(model: Any) -> int:
    """Return the width of the states that the head reads; some models project theirs down first (OPT-350m)."""
    return int(model.get_output_embeddings().weight.shape[1])


def _by_length(texts: Texts, batch_size: int) -> Iterator[Tensor]:
    """Yield row numbers, rows of similar length together."""
    order = (texts.prompt_mask.sum(dim=1) + texts.response_mask.sum(dim=1)).argsort(stable=True)
    yield from order.split(batch_size)


def _states(model: Any, part: Texts, compute: Compute) -> Tensor:
    with compute.autocast():
        return response_hidden(model, part.prompt_ids, part.prompt_mask, part.response_ids, part.response_mask)


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
    def fill(self, actors: Actors, texts: Texts, rows: Tensor, temperature: float, compute: Compute) -> None:
        """Score the given rows with both models, in the arithmetic of the update."""
        part = texts.select(rows)
        mask, num_tokens = part.response_mask, part.response_ids.shape[1]
        token_ids = part.response_ids[mask]
        for model, logprobs in ((actors.student, self.student), (actors.teacher, self.teacher)):
            hidden = _states(model, part, compute)
            found = logprobs.new_zeros(len(token_ids))
            readout = Readout(Head.of(model, compute.dtype), hidden[mask])
            for places, (logits,) in logit_blocks([readout], memory_mib=compute.loss_memory_mib):
                found[places] = token_logprobs(logits / temperature, token_ids[places])
            logprobs[rows, :num_tokens] = logprobs.new_zeros(mask.shape).masked_scatter(mask, found)
        self.teacher_hidden[rows, :num_tokens] = hidden.to(compute.dtype)
