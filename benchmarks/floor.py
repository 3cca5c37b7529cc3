"""The least time that a rollout's products and weights take on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minillm.device import Compute

_PRODUCT = (1024, 2048, 2048)
_READ_MIB = 512
_NUM_TRIES = 7


@dataclass(frozen=True)
class Ceilings:
    """The best of a few tries: operations a second of large products, bytes a second read from memory."""

    flop_per_s: float
    bytes_per_s: float

    def summary(self) -> dict[str, float]:
        """Return them in TFLOP/s and GB/s."""
        return {"tflop_per_s": round(self.flop_per_s / 1e12, 3), "gb_per_s": round(self.bytes_per_s / 1e9, 1)}


def measured_ceilings(compute: Compute) -> Ceilings:
    """Measure both in the arithmetic of the run."""
    rows, inner, columns = _PRODUCT
    left = torch.randn(rows, inner, device=compute.device).to(compute.dtype)
    right = torch.randn(inner, columns, device=compute.device).to(compute.dtype)
    out = torch.empty(rows, columns, device=compute.device, dtype=compute.dtype)
    product_s = _fastest_s(lambda: torch.mm(left, right, out=out), compute)
    buffer = torch.ones(_READ_MIB * 2**20 // 4, device=compute.device)
    read_s = _fastest_s(buffer.sum, compute)
    return Ceilings(2 * rows * inner * columns / product_s, _READ_MIB * 2**20 / read_s)


def _fastest_s(run: Callable[[], Any], compute: Compute) -> float:
    times = []
    for _ in range(_NUM_TRIES):
        start = time.perf_counter()
        run()
        if compute.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def rollout_floor_s(
    models: Sequence[Any], num_rows: int, num_prompt: int, picks: Sequence[bool], of: Ceilings
) -> float:
    """Return the least seconds of a mixed rollout after which the teacher has read every token once.

    models: student and teacher. num_prompt: real tokens of all prompts. picks: per position, whether the teacher draws.
    A forward pass takes as long as its operations or the reading of its weights, whichever is more.
    """
    total_s, waiting = 0.0, [num_prompt, num_prompt]
    for picked in map(int, picks):
        total_s += _pass_s(models[picked], waiting[picked], num_rows, of)
        waiting[picked] = 0
        waiting = [tokens + num_rows for tokens in waiting]
    return total_s + _pass_s(models[1], waiting[1] - num_rows, 0, of)


def _pass_s(model: Any, num_tokens: int, num_logits: int, of: Ceilings) -> float:
    head = model.get_output_embeddings().weight
    body = sum(weight.numel() for weight in model.model.layers.parameters())
    operations = 2 * (num_tokens * body + num_logits * head.numel())
    num_bytes = (body * bool(num_tokens) + head.numel() * bool(num_logits)) * head.element_size()
    return float(max(operations / of.flop_per_s, num_bytes / of.bytes_per_s))
