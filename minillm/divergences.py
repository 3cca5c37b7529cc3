"""Divergences between next-token distributions: pure functions of logits (..., V), exact, in nats.

Each is at least 0, 0 only between equal distributions, and differentiable through the student.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minillm.heads import wide
from minillm.kernels import losses
from minillm.kernels.compiled import takes
from minillm.logprobs import mixture_logprobs, token_logprobs

Divergence = Callable[[Tensor, Tensor], Tensor]

_LARGE_CONSTANT = 4.0  # in nats: a smaller one costs less than what log-probabilities of 10 nats are rounded by


class _Kl(torch.autograd.Function):
    """The sum of p (log p - log q) with its derivatives p (log p - log q + 1) and -p by log p and log q."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor) -> Tensor:
        probabilities = first.exp()
        terms = (first - second).mul_(probabilities)
        ctx.save_for_backward(probabilities, terms)
        return terms.sum(dim=-1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        probabilities, terms = ctx.saved_tensors
        by_first, by_second = ctx.needs_input_grad
        scale = gradient.unsqueeze(-1)
        return (
            (terms + probabilities).mul_(scale) if by_first else None,
            (probabilities * scale).neg_() if by_second else None,
        )


def kl(first_logprobs: Tensor, second_logprobs: Tensor) -> Tensor:
    """Return the Kullback-Leibler divergence (...) of two distributions given by log-probabilities (..., V)."""
    result: Tensor = _Kl.apply(first_logprobs, second_logprobs)  # type: ignore[no-untyped-call]
    return result


class _SampledTerms(torch.autograd.Function):
    """log p(token) and KL(p || q) of logits s and t.

    With d = s - t, which is log p - log q but for a constant: E_p d is the KL but for that constant, which the token
    tells, and the derivative of the KL by s is p (d - E_p d). A large constant would take digits from what is left.
    """

    @staticmethod
    def forward(
        ctx: Any, student_logits: Tensor, teacher_logits: Tensor, token_ids: Tensor, teacher_logprobs: Tensor
    ) -> tuple[Tensor, Tensor]:
        inputs = student_logits, teacher_logits, token_ids, teacher_logprobs
        has_kernels = all(takes(part.dtype, part.device) for part in inputs[:2])
        ctx.is_fast = has_kernels and teacher_logprobs.dtype == torch.float32
        if ctx.is_fast:
            results = losses.sampled_terms(*inputs)
            ctx.save_for_backward(*inputs, *results[1:])
            return results[0], results[1]
        student_logits, teacher_logits = wide(student_logits), wide(teacher_logits)
        probabilities, places = student_logits.softmax(dim=-1), token_ids.unsqueeze(-1)
        logprobs = _chosen_logprobs(student_logits, probabilities, token_ids)
        logits, known = (student_logits, teacher_logits), (logprobs, teacher_logprobs)
        differences, constants = _differences(logits, known, places)
        terms = differences.mul_(probabilities)
        means = terms.sum(dim=-1)
        ctx.save_for_backward(probabilities, terms, means, places)
        return logprobs, means - constants

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logprobs: Tensor, by_divergence: Tensor) -> tuple[Tensor, None, None, None]:
        if ctx.is_fast:
            inputs, results = ctx.saved_tensors[:4], ctx.saved_tensors[4:]
            return losses.sampled_terms_backward(inputs, results, (by_logprobs, by_divergence)), None, None, None
        probabilities, terms, means, places = ctx.saved_tensors
        shift = (-by_divergence * means - by_logprobs).unsqueeze(-1)
        gradient = (terms * by_divergence.unsqueeze(-1)).addcmul_(probabilities, shift)
        return gradient.scatter_add_(-1, places, by_logprobs.unsqueeze(-1)), None, None, None


def _differences(
    logits: tuple[Tensor, Tensor], logprobs: tuple[Tensor, Tensor], places: Tensor
) -> tuple[Tensor, Tensor]:
    """Return s - t (..., V) of two models, and the constants (...) by which they are more than log p - log q.

    logits: (..., V). logprobs: (...), of the tokens at places (..., 1), which tell the constants. Large ones are taken
    off each model's logits before, where they are numbers of about one size.
    """
    log_ratios = logprobs[0] - logprobs[1]
    differences = logits[0] - logits[1]
    constants = differences.gather(-1, places).squeeze(-1) - log_ratios
    if (constants.abs() > _LARGE_CONSTANT).any():
        pairs = zip(logits, logprobs, strict=True)
        own, other = (part - (part.gather(-1, places) - known.unsqueeze(-1)) for part, known in pairs)
        differences = own - other
        constants = differences.gather(-1, places).squeeze(-1) - log_ratios
    return differences, constants


def _chosen_logprobs(logits: Tensor, probabilities: Tensor, token_ids: Tensor) -> Tensor:
    """Return the log-probability (...) of each token, also where its probability is too small for a number."""
    logprobs = probabilities.gather(-1, token_ids.unsqueeze(-1)).squeeze(-1).log()
    smallest = math.log(torch.finfo(logits.dtype).tiny)
    is_lost = logprobs <= smallest
    if is_lost.any():
        logprobs[is_lost] = token_logprobs(logits[is_lost], token_ids[is_lost])
    return logprobs


def sampled_terms(
    student_logits: Tensor, teacher_logits: Tensor, token_ids: Tensor, teacher_logprobs: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the student's log-probability (...) of each token, and KL(student || teacher) (...), from logits (..., V).

    `token_logprobs` and `reverse_kl` with one exponential a logit, not four; no gradient to the teacher.
    teacher_logprobs: (...), the teacher's of the tokens under these logits: only the KL's value takes them, as what
    the teacher's logits lack to log-probabilities.
    """
    known = teacher_logprobs.expand(token_ids.shape)
    result: tuple[Tensor, Tensor] = _SampledTerms.apply(  # type: ignore[no-untyped-call]
        student_logits, teacher_logits.detach(), token_ids, known
    )
    return result


def forward_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return KL(teacher || student) (...): word-level knowledge distillation (arXiv:1606.07947)."""
    return kl(teacher_logits.log_softmax(dim=-1), student_logits.log_softmax(dim=-1))


def reverse_kl(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return KL(student || teacher) (...): the single-step term of MiniLLM (arXiv:2306.08543)."""
    return kl(student_logits.log_softmax(dim=-1), teacher_logits.log_softmax(dim=-1))


def skewed_forward_kl(student_logits: Tensor, teacher_logits: Tensor, skew: float) -> Tensor:
    """Return KL(teacher || skew teacher + (1 - skew) student) (...), 0 <= skew < 1; arXiv:2402.03898, section 3."""
    teacher, student = teacher_logits.log_softmax(dim=-1), student_logits.log_softmax(dim=-1)
    return kl(teacher, mixture_logprobs(teacher, student, skew))


def skewed_reverse_kl(student_logits: Tensor, teacher_logits: Tensor, skew: float) -> Tensor:
    """Return KL(student || skew student + (1 - skew) teacher) (...), 0 <= skew < 1; arXiv:2402.03898, section 3."""
    teacher, student = teacher_logits.log_softmax(dim=-1), student_logits.log_softmax(dim=-1)
    return kl(student, mixture_logprobs(student, teacher, skew))


def jsd(student_logits: Tensor, teacher_logits: Tensor, beta: float) -> Tensor:
    """Return beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student (...).

    The generalised Jensen-Shannon divergence of GKD, arXiv:2306.13649, section 2. It vanishes at both ends of beta,
    where its slope is the forward KL (0) or the reverse KL (1): there, the slope is returned.
    """
    if beta == 0:
        return forward_kl(student_logits, teacher_logits)
    if beta == 1:
        return reverse_kl(student_logits, teacher_logits)
    teacher, student = teacher_logits.log_softmax(dim=-1), student_logits.log_softmax(dim=-1)
    mixture = mixture_logprobs(teacher, student, beta)
    return beta * kl(teacher, mixture) + (1 - beta) * kl(student, mixture)


def adaptive_kl(student_logits: Tensor, teacher_logits: Tensor, head_share: float) -> Tensor:
    """Return the forward and the reverse KL weighted by where the two distributions differ (...); arXiv:2404.02657.

    The head holds the teacher's likeliest tokens up to a total probability of `head_share`, the tail the others. The
    forward KL is weighted by the head's part of the absolute difference, the reverse KL by the tail's. The weights
    choose between two objectives, so they carry no gradient.
    """
    gap_head, gap_tail = _gaps(student_logits.detach(), teacher_logits.detach(), head_share)
    total = gap_head + gap_tail
    weight = torch.where(total > 0, gap_head / total, 0.5)
    forward, reverse = forward_kl(student_logits, teacher_logits), reverse_kl(student_logits, teacher_logits)
    return weight * forward + (1 - weight) * reverse


def _gaps(student_logits: Tensor, teacher_logits: Tensor, head_share: float) -> tuple[Tensor, Tensor]:
    teacher, order = teacher_logits.softmax(dim=-1).sort(dim=-1, descending=True)
    difference = (teacher - student_logits.softmax(dim=-1).gather(-1, order)).abs()
    # The token that crosses the share belongs to the head, so that the head is never empty.
    head = teacher.cumsum(dim=-1) - teacher < head_share
    in_head = torch.where(head, difference, 0.0).sum(dim=-1)
    return in_head, torch.where(head, 0.0, difference).sum(dim=-1)


def total_variation(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Return half the summed absolute difference of probabilities (...), at most 1."""
    return 0.5 * (student_logits.softmax(dim=-1) - teacher_logits.softmax(dim=-1)).abs().sum(dim=-1)


def alpha_beta(student_logits: Tensor, teacher_logits: Tensor, alpha: float, beta: float) -> Tensor:
    """Return the alpha-beta divergence of teacher and student (...), alpha, beta >= 0, not both 0; arXiv:2505.04560.

    -1 / (alpha beta) sum(teacher^alpha student^beta - alpha / (alpha + beta) teacher^(alpha + beta)
    - beta / (alpha + beta) student^(alpha + beta)), continued to alpha = 0 and beta = 0 by its limits (Cichocki et al.,
    Entropy 13, 2011). (1, 0) is the forward KL, (0, 1) the reverse KL, (1, 1) half the squared distance.
    """
    teacher, student = teacher_logits.log_softmax(dim=-1), student_logits.log_softmax(dim=-1)
    if beta == 0:
        return _power_divergence(teacher, student, alpha)
    if alpha == 0:
        return _power_divergence(student, teacher, beta)
    total = alpha + beta
    cross = (alpha * teacher + beta * student).exp()
    own = (alpha * (total * teacher).exp() + beta * (total * student).exp()) / total
    return (own - cross).sum(dim=-1) / (alpha * beta)


def _power_divergence(first: Tensor, second: Tensor, order: float) -> Tensor:
    """Return sum(first^a (a log first - a log second) - first^a + second^a) / a^2 of log-probabilities (..., V)."""
    first_power, second_power = (order * first).exp(), (order * second).exp()
    terms = first_power * order * (first - second) - first_power + second_power
    return terms.sum(dim=-1) / order**2


_BY_NAME: dict[str, Callable[..., Tensor]] = {
    function.__name__: function
    for function in (
        forward_kl,
        reverse_kl,
        skewed_forward_kl,
        skewed_reverse_kl,
        jsd,
        adaptive_kl,
        total_variation,
        alpha_beta,
    )
}


def named_divergence(name: str, **parameters: float) -> Divergence:
    """Return the divergence of that name with its parameters bound."""
    return partial(_BY_NAME[name], **parameters)


def cross_entropy(target_logits: Tensor, student_logits: Tensor) -> Tensor:
    """Return the student's cross-entropy (...) against the target distribution."""
    return -(target_logits.softmax(dim=-1) * student_logits.log_softmax(dim=-1)).sum(dim=-1)


def entropy(logits: Tensor) -> Tensor:
    """Return the entropy (...) of a distribution."""
    return cross_entropy(logits, logits)
