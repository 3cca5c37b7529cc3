"""A language model small enough to enumerate: 3 tokens, 3 steps, one logit vector per prefix, float64."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor

from minillm.logprobs import mixture_logprobs, token_logprobs
from minillm.types import Rollout

NUM_TOKENS = 3
NUM_STEPS = 3
END_ID = 2


def sequences() -> list[tuple[int, ...]]:
    """Return every response: it ends at the first end token or is cut after NUM_STEPS."""
    found = []
    for tokens in product(range(NUM_TOKENS), repeat=NUM_STEPS):
        end = tokens.index(END_ID) + 1 if END_ID in tokens else NUM_STEPS
        if tokens[:end] not in found:
            found.append(tokens[:end])
    return found


def prefix_index(prefix: tuple[int, ...]) -> int:
    """Return the row of the logit table for a prefix without an end token."""
    offset = sum(NUM_TOKENS**length for length in range(len(prefix)))
    return offset + sum(token * NUM_TOKENS**place for place, token in enumerate(prefix))


def random_table(seed: int) -> Tensor:
    """Return logits (prefixes, V) of a random model."""
    num_prefixes = sum(NUM_TOKENS**length for length in range(NUM_STEPS))
    return torch.randn(num_prefixes, NUM_TOKENS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sequence_logits(table: Tensor, sequence: tuple[int, ...]) -> Tensor:
    """Return the logits (T, V) that predict each token of the sequence."""
    return table[[prefix_index(sequence[:step]) for step in range(len(sequence))]]


def sequence_logprob(table: Tensor, sequence: tuple[int, ...]) -> Tensor:
    """Return log P(sequence)."""
    return token_logprobs(sequence_logits(table, sequence), torch.tensor(sequence)).sum()


def rollout_of(student: Tensor, teacher: Tensor, sequence: tuple[int, ...], teacher_mix_alpha: float) -> Rollout:
    """Return the rollout (B = 1) that holds one sequence, padded to NUM_STEPS."""
    ids = torch.tensor(sequence)
    student_logprobs, teacher_logprobs = (
        token_logprobs(sequence_logits(table.detach(), sequence), ids) for table in (student, teacher)
    )
    mask = torch.arange(NUM_STEPS)[None] < len(sequence)
    behavior = mixture_logprobs(teacher_logprobs, student_logprobs, teacher_mix_alpha)
    return Rollout(
        prompt_ids=torch.zeros(1, 1, dtype=torch.long),
        prompt_mask=torch.ones(1, 1, dtype=torch.bool),
        response_ids=_padded(ids, END_ID),
        response_mask=mask,
        # What stands outside the mask must never matter, so it is as bad as can be.
        old_logprobs=_padded(student_logprobs, float("nan")),
        teacher_logprobs=_padded(teacher_logprobs, float("nan")),
        behavior_logprobs=_padded(behavior, float("nan")),
        teacher_hidden=torch.zeros(1, NUM_STEPS, 1),
    )


def _padded(values: Tensor, filler: float) -> Tensor:
    row = torch.full((1, NUM_STEPS), filler, dtype=values.dtype)
    row[0, : len(values)] = values
    return row


def mixture_probability(student: Tensor, teacher: Tensor, sequence: tuple[int, ...], alpha: float) -> Tensor:
    """Return P(sequence) when every token is drawn from alpha teacher + (1 - alpha) student."""
    ids = torch.tensor(sequence)
    probabilities = (1 - alpha) * sequence_logits(student, sequence).softmax(-1)
    probabilities = probabilities + alpha * sequence_logits(teacher, sequence).softmax(-1)
    return probabilities.gather(1, ids[:, None]).prod().detach()


def exact_reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(student || teacher) over whole responses, by enumeration, differentiable."""
    total = torch.zeros((), dtype=torch.float64)
    for sequence in sequences():
        own = sequence_logprob(student, sequence)
        total = total + own.exp() * (own - sequence_logprob(teacher, sequence))
    return total
