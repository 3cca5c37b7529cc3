"""Truncated sampling: keep the likeliest tokens only (top-k, then top-p)."""

from __future__ import annotations

from torch import Tensor

_RULED_OUT = float("-inf")


def truncated(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Return logits (B, V) with -inf at the tokens that top-k (0 = off) or top-p (1 = off) rule out.

    top-p keeps the smallest set of likeliest tokens whose probability, after top-k, reaches `top_p`: at least one.
    """
    if 0 < top_k < logits.shape[-1]:
        kept = logits.topk(top_k, dim=-1).indices
        logits = logits.new_full(logits.shape, _RULED_OUT).scatter(-1, kept, logits.gather(-1, kept))
    if top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.double().softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        ordered = ordered.masked_fill(before >= top_p, _RULED_OUT)
        logits = logits.scatter(-1, order, ordered)
    return logits
