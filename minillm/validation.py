"""Validation during distillation: Rouge-L and exact reverse KL of sampled responses to held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minillm.dataset import Example
from minillm.device import Compute
from minillm.evaluation.distance import mean_reverse_kl, summed_reverse_kl
from minillm.evaluation.rouge import mean_rouge_l
from minillm.generation import Decoding, all_responses, generate_responses
from minillm.rollout import Actors
from minillm.sft import validation_loss


def validation_scores(
    actors: Actors,
    rows: Sequence[Example],
    tokenizer: Any,
    decoding: Decoding,
    score_batch_tokens: int,
    compute: Compute,
) -> dict[str, float]:
    """Return `validation/rougeL` in points, `validation/reverse_kl` and `validation/loss` in nats per token.

    The loss is the negative log-likelihood of the held-out responses.

    The draws are the same at every call, so that successive values differ by the student alone.
    """
    prompts = [row.prompt_ids for row in rows]
    responses = all_responses(generate_responses(actors.sampler, prompts, [row.row_id for row in rows], decoding))
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    parts = summed_reverse_kl(
        actors.student,
        actors.teacher,
        prompts,
        responses,
        temperature=decoding.temperature,
        batch_tokens=score_batch_tokens,
        pad_id=decoding.pad_id,
        compute=compute,
    )
    loss = validation_loss(
        actors.student, rows, batch_tokens=score_batch_tokens, pad_id=decoding.pad_id, compute=compute
    )
    return {
        "validation/loss": loss,
        "validation/rougeL": mean_rouge_l(texts, [row.references for row in rows]),
        "validation/reverse_kl": mean_reverse_kl(parts),
        "validation/length_mean": sum(map(len, responses)) / len(responses),
    }
