"""Reverse KL from a student to its teacher on given responses, exact over the vocabulary at every position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from minillm.batching import token_batches
from minillm.device import Compute
from minillm.divergences import reverse_kl
from minillm.halves import Halves
from minillm.heads import logit_blocks
from minillm.padding import padded_texts


@torch.no_grad()
def summed_reverse_kl(
    student: Any,
    teacher: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    temperature: float,
    batch_tokens: int,
    pad_id: int,
    compute: Compute,
) -> Iterator[tuple[float, int]]:
    """Yield, batch by batch, the sum of KL(student || teacher) in nats over response tokens, and their number.

    The distributions compared are those sampled from: both models' at `temperature`.
    """
    halves = [Halves(model, compute.dtype) for model in (student, teacher)]
    lengths = [len(prompt) + len(response) for prompt, response in zip(prompts, responses, strict=True)]
    for rows in token_batches(lengths, batch_tokens):
        texts = padded_texts([prompts[row] for row in rows], [responses[row] for row in rows], pad_id, compute.device)
        blocks = logit_blocks([half.readout(texts) for half in halves], memory_mib=compute.loss_memory_mib)
        total = sum(float(reverse_kl(own / temperature, other / temperature).sum()) for _, (own, other) in blocks)
        yield total, int(texts.response_mask.sum())


def mean_reverse_kl(parts: Iterator[tuple[float, int]]) -> float:
    """Return nats per token over all batches."""
    sums = list(parts)
    return sum(total for total, _ in sums) / sum(count for _, count in sums)
