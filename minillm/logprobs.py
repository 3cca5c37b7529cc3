"""From states to log-probabilities: the head, a token's log-probability, and the mixture of two models.

Shapes: B batch, L columns, H hidden, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from minillm.heads import Head


def position_ids(attention_mask: Tensor) -> Tensor:
    """Return positions (B, L) that count real tokens only, so that left padding does not shift them."""
    return (attention_mask.long().cumsum(dim=1) - 1).clamp(min=0)


def head_logits(model: Any, hidden: Tensor) -> Tensor:
    """Return float32 logits (..., V) of the model's head, without gradient, with its soft cap if it has one."""
    head = Head.of(model)
    return head.capped(head.projected(hidden))


def token_logprobs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """Return the log-probability (...) in nats of each token under logits (..., V)."""
    return logits.log_softmax(dim=-1).gather(-1, token_ids.unsqueeze(-1)).squeeze(-1)


def mixture_logprobs(teacher_logprobs: Tensor, student_logprobs: Tensor, teacher_mix_alpha: float) -> Tensor:
    """Return log(alpha teacher + (1 - alpha) student), elementwise; arXiv:2306.08543, teacher-mixed sampling."""
    if teacher_mix_alpha == 0:
        return student_logprobs
    return torch.logaddexp(
        math.log(teacher_mix_alpha) + teacher_logprobs, math.log1p(-teacher_mix_alpha) + student_logprobs
    )
