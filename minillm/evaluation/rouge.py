"""Rouge-L of responses against references."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

_POINTS = 100.0
_READ = re.compile("[a-z0-9]")  # all that rouge_score reads of a text in lower case
# Of scripts that put no spaces between words: Thai to Myanmar, Khmer, Japanese, Chinese.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")


class _AnyScript:
    """Words of any script without punctuation; single characters where words have no spaces between them."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words in lower case."""
        return "".join(map(_spaced, text.casefold())).split()


def _spaced(character: str) -> str:
    if _UNSPACED.match(character):
        return f" {character} "
    return character if unicodedata.category(character)[0] in "LMN" else " "  # letters, marks, numbers


@cache
def _scorer(reads_latin: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=True, tokenizer=None if reads_latin else _AnyScript())


def rouge_l(response: str, references: Sequence[str]) -> float:
    """Return Rouge-L F1 in points, 0 to 100, stemmed, the largest over the references; an empty response scores 0.

    rouge_score reads ASCII letters and digits alone and gives 0 to all else. A reference that has none is compared by
    the words of its script instead.
    """
    return max(_POINTS * _f1(response, reference) for reference in references)


def _f1(response: str, reference: str) -> float:
    scorer = _scorer(_READ.search(reference.lower()) is not None)
    return float(scorer.score(reference, response)["rougeL"].fmeasure)


def mean_rouge_l(responses: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the mean over rows; lists of different lengths raise ValueError."""
    scores = [rouge_l(response, texts) for response, texts in zip(responses, references, strict=True)]
    return sum(scores) / len(scores)
