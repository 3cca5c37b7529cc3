"""Scores of decoded responses: what one decoding reached, and the mean over sampling seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from minillm.dataset import Example
from minillm.evaluation.diversity import distinct_share
from minillm.evaluation.rouge import mean_rouge_l

GREEDY = "greedy"
_SCORES = ("rougeL", "length_mean", "eos_rate", "distinct_4")


def decoding_scores(responses: Sequence[list[int]], rows: Sequence[Example], tokenizer: Any) -> dict[str, float]:
    """Return Rouge-L in points, tokens per response, and shares: of ended responses and of distinct 4-grams."""
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    ended = sum(tokenizer.eos_token_id in response for response in responses)
    return {
        "rougeL": mean_rouge_l(texts, [row.references for row in rows]),
        "length_mean": statistics.fmean(map(len, responses)),
        "eos_rate": ended / len(responses),
        "distinct_4": distinct_share(responses, 4),
    }


def summarized_scores(
    decoded: Mapping[str, Sequence[list[int]]], rows: Sequence[Example], tokenizer: Any
) -> dict[str, Any]:
    """Return the mean over sampling seeds (with the standard deviation of Rouge-L) and the greedy scores."""
    per_decoding = {name: decoding_scores(responses, rows, tokenizer) for name, responses in decoded.items()}
    greedy = per_decoding.pop(GREEDY, None)
    columns = {key: [scores[key] for scores in per_decoding.values()] for key in _SCORES}
    sampled = {key: statistics.fmean(values) for key, values in columns.items()}
    values = columns["rougeL"]
    sampled["rougeL_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
    result: dict[str, Any] = {"num_rows": len(rows), "sampled": sampled}
    return result if greedy is None else result | {"greedy": greedy}
