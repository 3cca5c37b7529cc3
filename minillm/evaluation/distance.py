"""Reverse KL from a student to its teacher on given responses, exact over the vocabulary at every position."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from minillm.device import Compute
from minillm.divergences import reverse_kl
from minillm.heads import Head, Readout, logit_blocks
from minillm.logprobs import response_hidden
from minillm.padding import pad_left, pad_right


@torch.no_grad()
def summed_reverse_kl(
    student: Any,
    teacher: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    *,
    temperature: float,
    batch_size: int,
    pad_id: int,
    compute: Compute,
) -> Iterator[tuple[float, int]]:
    """Yield, batch by batch, the sum of KL(student || teacher) in nats over response tokens, and their number.

    The distributions compared are those sampled from: both models' at `temperature`.
    """
    heads = [Head.of(model, compute.dtype) for model in (student, teacher)]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]) + len(responses[index]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        parts = *pad_left([prompts[row] for row in rows], pad_id), *pad_right([responses[row] for row in rows], pad_id)
        tensors = [part.to(compute.device) for part in parts]
        with compute.autocast():
            states = [response_hidden(model, *tensors)[tensors[3]] for model in (student, teacher)]
        readouts = [Readout(head, part) for head, part in zip(heads, states, strict=True)]
        blocks = logit_blocks(readouts, memory_mib=compute.loss_memory_mib)
        total = sum(float(reverse_kl(own / temperature, other / temperature).sum()) for _, (own, other) in blocks)
        yield total, int(tensors[3].sum())


def mean_reverse_kl(parts: Iterator[tuple[float, int]]) -> float:
    """Return nats per token over all batches."""
    sums = list(parts)
    return sum(total for total, _ in sums) / sum(count for _, count in sums)
