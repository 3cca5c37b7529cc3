"""Rouge-L of responses against references."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

_POINTS = 100.0


@cache
def _scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True)


def rouge_l(response: str, references: Sequence[str]) -> float:
    """Return Rouge-L F1 in points, 0 to 100, stemmed, the largest over the references; an empty response scores 0."""
    return max(_POINTS * float(_scorer().score(reference, response)["rougeL"].fmeasure) for reference in references)


def mean_rouge_l(responses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the mean over rows; lists of different lengths raise ValueError."""
    scores = [rouge_l(response, texts) for response, texts in zip(responses, references, strict=True)]
    return sum(scores) / len(scores)
