"""Divergences between next-token distributions: pure functions of logits (..., V), exact, in nats."""

from __future__ import annotations

from torch import Tensor


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return KL(student || teacher) (...), at least 0, differentiable through the student."""
    student_logprobs = student_logits.log_softmax(dim=-1)
    teacher_logprobs = teacher_logits.log_softmax(dim=-1)
    return (student_logprobs.exp() * (student_logprobs - teacher_logprobs)).sum(dim=-1)


def cross_entropy(target_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return the student's cross-entropy (...) against the target distribution."""
    return -(target_logits.softmax(dim=-1) * student_logits.log_softmax(dim=-1)).sum(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy (...) of a distribution."""
    return cross_entropy(logits, logits)
