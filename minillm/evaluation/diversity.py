"""How varied responses are."""

from __future__ import annotations

from collections.abc import Sequence


def distinct_share(responses: Sequence[Sequence[int]], size: int) -> float:
    """Return the share of distinct ones among all n-grams of `size` tokens (distinct-n, arXiv:1510.03055); 0 if none.

    Over all responses together, so that saying the same thing to every prompt counts as repetition.
    """
    grams = [tuple(row[start : start + size]) for row in responses for start in range(len(row) - size + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0
