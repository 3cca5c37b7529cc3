"""From models to log-probabilities: the one next-token shift, the head, and the mixture of two models.

Shapes: B batch, P prompt, T response, H hidden, V vocabulary, N response tokens of a batch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from minillm.heads import Head
from minillm.packed_rows import packed_states, packs, text_columns
from minillm.types import Texts


def position_ids(attention_mask: Tensor) -> Tensor:
    """Return positions (B, L) that count real tokens only, so that left padding does not shift them."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def response_states(model: Any, texts: Texts) -> Tensor:
    """Return the states (N, H) from which the head predicts each response token, row after row.

    The state that predicts response token t is the one at token t - 1; the first is predicted from the prompt's last,
    wherever its padding stands.
    """
    ids = torch.cat([texts.prompt_ids, texts.response_ids], dim=1)
    mask = torch.cat([texts.prompt_mask, texts.response_mask], dim=1)
    is_response = torch.cat([torch.zeros_like(texts.prompt_mask), texts.response_mask], dim=1)[mask]
    assert texts.prompt_mask.any(dim=1).all(), "a prompt is empty: nothing predicts its response's first token"
    predicts = is_response.roll(-1)  # behind a row's last token comes the first of a prompt
    return _token_states(model, ids, mask)[predicts]


def num_body_positions(model: Any, texts: Texts) -> int:
    """Return how many positions the body computes for `response_states`, padding included."""
    lengths = texts.lengths()
    return sum(lengths) if packs(model) else len(lengths) * max(lengths)


def _token_states(model: Any, ids: Tensor, mask: Tensor) -> Tensor:
    """Return the states (N, H) of all real tokens, row after row."""
    if packs(model):
        return packed_states(model, ids[mask], mask.sum(dim=1))
    kept = text_columns(mask.sum(dim=1))  # prompt and response side by side, so that less is padding
    padded = ids.new_zeros(kept.shape).masked_scatter(kept, ids[mask])
    output = model.base_model(
        input_ids=padded, attention_mask=kept.long(), position_ids=position_ids(kept), use_cache=False
    )
    states: Tensor = output.last_hidden_state
    return states[kept]


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Return float32 logits (..., V) of the model's head, without gradient, with its soft cap if it has one."""
    head = Head.of(model)
    return head.capped(head.projected(hidden))


def token_logprobs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return the log-probability (...) in nats of each token under logits (..., V)."""
    return logits.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


def mixture_logprobs(teacher_logprobs: Tensor, student_logprobs: Tensor, teacher_mix_alpha: float) -> Tensor:
    """Return log(alpha teacher + (1 - alpha) student), elementwise; arXiv:2306.08543, teacher-mixed sampling."""
    if teacher_mix_alpha == 0:
        return student_logprobs
    return torch.logaddexp(
        math.log(teacher_mix_alpha) + teacher_logprobs, math.log1p(-teacher_mix_alpha) + student_logprobs
    )
