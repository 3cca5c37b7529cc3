"""Responses to prompts, batch by batch: for rollouts, validation and evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from minillm.draws import component_draws, token_uniforms
from minillm.padding import pad_left
from minillm.sampling import Responses, decodable, sample_responses
from minillm.types import PromptBatch


@dataclass(frozen=True)
class Decoding:
    """How responses are drawn.

    seed: of the draws; None decodes greedily.
    step: keys the draws beside the seed, so that every phase of a run draws anew.
    batch_size: rows decoded together; changes no token of one model, but which rows share component draws of a mixture.
    mask_groups: sets of rows of a batch with component draws of their own; with one for every row, the batch changes no
        token of a mixture either.
    top_k, top_p: truncation of sampling; 0 and 1 = off.
    max_tokens: response length at most, the end token included.
    """

    seed: int | None
    step: int
    batch_size: int
    temperature: float
    top_k: int
    top_p: float
    max_tokens: int
    end_id: int
    pad_id: int
    mask_groups: int = 1


def generate_responses(
    model: Any, prompts: Sequence[Sequence[int]], row_ids: Sequence[int], decoding: Decoding
) -> Iterator[list[tuple[int, list[int]]]]:
    """Yield per batch (index of the prompt, response ids through the end token), prompts of similar length together."""
    for indices, responses in sampled_batches(model, None, prompts, row_ids, decoding):
        pairs = zip(responses.response_ids, responses.response_mask, strict=True)
        yield list(zip(indices, [row[kept].tolist() for row, kept in pairs], strict=True))


def sampled_batches(
    student: Any,
    teacher: Any,
    prompts: Sequence[Sequence[int]],
    row_ids: Sequence[int],
    decoding: Decoding,
    teacher_mix_alpha: float = 0.0,
    group_size: int = 1,
    keep_student_states: bool = False,
) -> Iterator[tuple[list[int], Responses]]:
    """Yield per batch the indices of its prompts and the responses; with a teacher, also the teacher's states.

    Models that are not prepared by `decodable` are prepared here. Draws are keyed by (seed, step, row_id, position).
    With `teacher_mix_alpha` > 0 tokens come from the mixture, and rows of a batch may share its component draws:
    consecutive rows of a group then go to different batches, so that statistics within a group are those of
    independent responses.
    """
    num_members = group_size if teacher_mix_alpha > 0 else 1
    student, teacher = decodable(student), None if teacher is None else decodable(teacher)
    for indices in _batches(prompts, decoding.batch_size, num_members):
        ids, mask = pad_left([prompts[index] for index in indices], decoding.pad_id)
        batch = PromptBatch(ids.to(student.device), mask.to(student.device), [row_ids[index] for index in indices])
        responses = sample_responses(
            student,
            teacher,
            batch,
            uniforms=_uniforms(batch, decoding),
            teacher_picks=_teacher_picks(batch.row_ids, decoding, teacher_mix_alpha),
            temperature=decoding.temperature,
            top_k=decoding.top_k,
            top_p=decoding.top_p,
            end_id=decoding.end_id,
            pad_id=decoding.pad_id,
            keep_student_states=keep_student_states,
            keep_teacher_states=teacher is not None,
        )
        yield indices, responses


def _batches(prompts: Sequence[Sequence[int]], batch_size: int, num_members: int) -> Iterator[list[int]]:
    """Yield the indices of each batch: rows of similar length, of one member of every group."""
    for member in range(num_members):
        order = sorted(range(member, len(prompts), num_members), key=lambda index: len(prompts[index]))
        for first in range(0, len(order), batch_size):
            yield order[first : first + batch_size]


def _uniforms(batch: PromptBatch, decoding: Decoding) -> torch.Tensor | None:
    if decoding.seed is None:
        return None
    return token_uniforms(decoding.seed, decoding.step, batch.row_ids, decoding.max_tokens)


def _teacher_picks(row_ids: Sequence[int], decoding: Decoding, teacher_mix_alpha: float) -> torch.Tensor:
    """Return the component draws (B, T), keyed by the first row of each group; groups differ by a row at most."""
    seed, num_rows = decoding.seed, len(row_ids)
    if seed is None or teacher_mix_alpha == 0:
        return torch.zeros(num_rows, decoding.max_tokens, dtype=torch.bool)
    places = groupby(range(num_rows), key=lambda place: place * decoding.mask_groups // num_rows)
    groups = [[row_ids[place] for place in group] for _, group in places]
    draws = [component_draws(seed, decoding.step, min(rows), decoding.max_tokens, teacher_mix_alpha) for rows in groups]
    return torch.tensor(draws).repeat_interleave(torch.tensor([len(rows) for rows in groups]), dim=0)


def all_responses(batches: Iterator[list[tuple[int, list[int]]]]) -> list[list[int]]:
    """Return the responses of every batch in the order of their prompts."""
    by_index = dict(pair for batch in batches for pair in batch)
    return [by_index[index] for index in range(len(by_index))]
