"""Collect one phase of experience: sample from the mixture, then score once with each model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minillm.batching import token_batches
from minillm.device import Compute
from minillm.failpoints import failpoint
from minillm.generation import Decoding, sampled_batches
from minillm.halves import Halves, response_states
from minillm.heads import Head, Readout, logit_blocks
from minillm.logprobs import mixture_logprobs, token_logprobs
from minillm.padding import padded_texts
from minillm.sampling import Responses, decodable, tempered
from minillm.stopwatch import Stopwatch
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
    score_batch_tokens: int,
    compute: Compute,
    stopwatch: Stopwatch,
    first_row_id: int = 0,
    group_size: int = 1,
) -> Rollout:
    """Return one response per prompt, in the prompts' order, with the log-probabilities the update needs.

    The row's place in `prompts`, counted from `first_row_id`, keys its draws. Rows that answer one prompt (groups of
    `group_size`) are sampled independently of each other.
    """
    row_ids = range(first_row_id, first_row_id + len(prompts))
    rows = _sampled_rows(actors, prompts, row_ids, decoding, teacher_mix_alpha, group_size, stopwatch)
    texts = padded_texts(prompts, [row.response_ids for row in rows], decoding.pad_id, compute.device)
    stopwatch.count(rollout_tokens=sum(texts.lengths()) - len(rows))  # no model reads a response's last token
    states = pad_sequence([row.teacher_states for row in rows], batch_first=True).to(compute.dtype)
    failpoint("rollout.sampled")
    with stopwatch.part("score"):
        student, teacher = _logprobs(actors, texts, rows, states, score_batch_tokens, decoding.temperature, compute)
    return Rollout(
        **vars(texts),
        old_logprobs=student,
        teacher_logprobs=teacher,
        behavior_logprobs=mixture_logprobs(teacher, student, teacher_mix_alpha),
        teacher_hidden=states,
    )


def _sampled_rows(
    actors: Actors,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[int],
    decoding: Decoding,
    teacher_mix_alpha: float,
    group_size: int,
    stopwatch: Stopwatch,
) -> list[_Row]:
    """Return a row for each prompt; the student's states are those of the update where it is itself sampled from."""
    rows: dict[int, _Row] = {}
    models, is_student = (actors.sampler, actors.teacher_sampler), actors.sampler is actors.student
    for indices, responses in sampled_batches(
        *models, prompts, row_ids, decoding, teacher_mix_alpha, group_size, keep_student_states=is_student
    ):
        rows.update(zip(indices, _rows(responses), strict=True))
        num_positions, num_calls = responses.student_reads.num_positions, responses.teacher_reads.num_calls
        stopwatch.count(rollout_positions=num_positions, teacher_calls=num_calls)
    return [rows[index] for index in range(len(prompts))]


class _Row(NamedTuple):
    """What decoding left of one response of T tokens.

    teacher_picks, drawn_logprobs: (T,), who supplied each token's distribution, and the token's log-probability in it.
    student_states, teacher_states: (T, H), from which the models predict each token; the student's if it was itself
        that was sampled from.
    """

    response_ids: list[int]
    teacher_picks: Tensor
    drawn_logprobs: Tensor
    student_states: Tensor | None
    teacher_states: Tensor


def _rows(responses: Responses) -> Iterator[_Row]:
    assert responses.teacher_states is not None
    own = responses.student_states
    for place, kept in enumerate(responses.response_mask):
        yield _Row(
            responses.response_ids[place][kept].tolist(),
            responses.teacher_picks[place][kept],
            responses.drawn_logprobs[place][kept],
            None if own is None else own[place][kept],
            responses.teacher_states[place][kept],
        )


def _logprobs(
    actors: Actors,
    texts: Texts,
    rows: Sequence[_Row],
    teacher_states: Tensor,
    score_batch_tokens: int,
    temperature: float,
    compute: Compute,
) -> tuple[Tensor, Tensor]:
    """Return the student's and the teacher's log-probabilities (B, T) of the response tokens.

    A sampler that is the student itself computes as the update does: what it gave while drawing is not computed again.
    """
    states = teacher_states[texts.response_mask]
    student, teacher = Halves(actors.student, compute.dtype), Head.of(actors.teacher, compute.dtype)
    own = [row.student_states for row in rows if row.student_states is not None]
    if not own:
        logprobs = response_logprobs(student, texts, score_batch_tokens, temperature, compute)
        return logprobs, kept_logprobs(teacher, texts, states, temperature, compute)
    drawn, picks = torch.cat([row.drawn_logprobs for row in rows]), torch.cat([row.teacher_picks for row in rows])
    return (
        kept_logprobs(student.head, texts, torch.cat(own), temperature, compute, drawn.where(~picks, torch.nan)),
        kept_logprobs(teacher, texts, states, temperature, compute, drawn.where(picks, torch.nan)),
    )


@torch.no_grad()
def response_logprobs(halves: Halves, texts: Texts, batch_tokens: int, temperature: float, compute: Compute) -> Tensor:
    """Return a model's log-probabilities (B, T) of the response tokens, in the arithmetic of the update."""
    logprobs = torch.zeros(texts.response_mask.shape, device=compute.device)
    for rows in _batches(texts, batch_tokens):
        part = texts.select(rows)
        found = kept_logprobs(halves.head, part, response_states(halves.body, part), temperature, compute)
        logprobs[rows, : found.shape[1]] = found
    return logprobs


@torch.no_grad()
def kept_logprobs(
    head: Head, texts: Texts, states: Tensor, temperature: float, compute: Compute, known: Tensor | None = None
) -> Tensor:
    """Return a model's log-probabilities (B, T) of the response tokens from the states (N, H) before them.

    known: (N,), those that need not be computed, NaN for the others.
    """
    mask = texts.response_mask
    token_ids, logprobs = texts.response_ids[mask], torch.zeros(mask.shape, device=compute.device)
    found = logprobs.new_full(token_ids.shape, torch.nan) if known is None else known
    absent = found.isnan().nonzero().squeeze(1)
    blocks = logit_blocks([Readout(head, states[absent])], memory_mib=compute.loss_memory_mib)
    for places, (logits,) in blocks:
        found[absent[places]] = token_logprobs(tempered(logits, temperature), token_ids[absent[places]])
    return logprobs.masked_scatter(mask, found)


@torch.no_grad()
def scored_by_teacher(
    teacher: Any, texts: Texts, batch_tokens: int, compute: Compute, stopwatch: Stopwatch
) -> ScoredTexts:
    """Return the texts with the teacher's states, from one pass over each."""
    with stopwatch.part("score"):
        states = _teacher_states(teacher, texts, batch_tokens, compute, stopwatch)
    return ScoredTexts(**vars(texts), teacher_hidden=states)


def _teacher_states(teacher: Any, texts: Texts, batch_tokens: int, compute: Compute, stopwatch: Stopwatch) -> Tensor:
    halves = Halves(teacher, compute.dtype)
    shape = *texts.response_mask.shape, halves.head.state_size
    states = torch.zeros(shape, dtype=compute.dtype, device=compute.device)
    for rows in _batches(texts, batch_tokens):
        part = texts.select(rows)
        kept = states.new_zeros(*part.response_mask.shape, states.shape[2])
        kept[part.response_mask] = response_states(halves.body, part).to(compute.dtype)
        states[rows, : kept.shape[1]] = kept
        stopwatch.count(teacher_calls=1)
    return states


def _batches(texts: Texts, max_tokens: int) -> Iterator[Tensor]:
    """Yield the rows that share a forward pass."""
    for rows in token_batches(texts.lengths(), max_tokens):
        yield torch.tensor(rows, device=texts.response_ids.device)
