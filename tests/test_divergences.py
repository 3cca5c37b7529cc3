"""Every divergence against its definition on probabilities, its limits, its sign and its gradient, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from minillm.divergences import (
    adaptive_kl,
    alpha_beta,
    forward_kl,
    jsd,
    named_divergence,
    reverse_kl,
    sampled_terms,
    skewed_forward_kl,
    skewed_reverse_kl,
    total_variation,
)
from minillm.logprobs import token_logprobs

FAMILY = {
    "forward_kl": {},
    "reverse_kl": {},
    "skewed_forward_kl": {"skew": 0.1},
    "skewed_reverse_kl": {"skew": 0.1},
    "jsd": {"beta": 0.3},
    "adaptive_kl": {"head_share": 0.5},
    "total_variation": {},
    "alpha_beta": {"alpha": 0.2, "beta": 0.7},
}


def logits(seed: int, num_rows: int = 4, num_tokens: int = 6) -> Tensor:
    return 1.5 * torch.randn(num_rows, num_tokens, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


STUDENT, TEACHER = logits(1), logits(2)


def plain(formula: Callable[[list[float], list[float]], float]) -> Tensor:
    """Return a formula of (student, teacher) probabilities, row by row, in plain Python."""
    pairs = zip(STUDENT.softmax(-1).tolist(), TEACHER.softmax(-1).tolist(), strict=True)
    return torch.tensor([formula(*pair) for pair in pairs], dtype=torch.float64)


def kl(first: list[float], second: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(first, second, strict=True))


def mixed(first: list[float], second: list[float], share: float) -> list[float]:
    return [share * a + (1 - share) * b for a, b in zip(first, second, strict=True)]


def ab(student: list[float], teacher: list[float], alpha: float, beta: float) -> float:
    terms = [
        t**alpha * s**beta - alpha / (alpha + beta) * t ** (alpha + beta) - beta / (alpha + beta) * s ** (alpha + beta)
        for s, t in zip(student, teacher, strict=True)
    ]
    return -sum(terms) / (alpha * beta)


@pytest.mark.parametrize(
    ("produced", "formula"),
    [
        (forward_kl(STUDENT, TEACHER), lambda s, t: kl(t, s)),
        (reverse_kl(STUDENT, TEACHER), lambda s, t: kl(s, t)),
        (skewed_forward_kl(STUDENT, TEACHER, 0.1), lambda s, t: kl(t, mixed(t, s, 0.1))),
        (skewed_reverse_kl(STUDENT, TEACHER, 0.1), lambda s, t: kl(s, mixed(s, t, 0.1))),
        (
            jsd(STUDENT, TEACHER, 0.3),
            lambda s, t: 0.3 * kl(t, mixed(t, s, 0.3)) + 0.7 * kl(s, mixed(t, s, 0.3)),
        ),
        (total_variation(STUDENT, TEACHER), lambda s, t: sum(abs(a - b) for a, b in zip(s, t, strict=True)) / 2),
        (alpha_beta(STUDENT, TEACHER, 0.2, 0.7), lambda s, t: ab(s, t, 0.2, 0.7)),
    ],
    ids=["forward_kl", "reverse_kl", "skewed_forward_kl", "skewed_reverse_kl", "jsd", "total_variation", "alpha_beta"],
)
def test_the_value_is_that_of_the_definition(
    produced: Tensor, formula: Callable[[list[float], list[float]], float]
) -> None:
    assert float((produced - plain(formula)).abs().max()) < 1e-13


def head_weight(student: list[float], teacher: list[float], head_share: float) -> float:
    """The forward KL's weight, token by token in the teacher's order of preference."""
    gaps, before = [0.0, 0.0], 0.0
    for place in sorted(range(len(teacher)), key=lambda index: -teacher[index]):
        gaps[before >= head_share] += abs(teacher[place] - student[place])
        before += teacher[place]
    return gaps[0] / sum(gaps)


def test_the_adaptive_divergence_weighs_forward_and_reverse_by_head_and_tail() -> None:
    expected = plain(lambda s, t: head_weight(s, t, 0.5) * kl(t, s) + (1 - head_weight(s, t, 0.5)) * kl(s, t))
    assert float((adaptive_kl(STUDENT, TEACHER, 0.5) - expected).abs().max()) < 1e-13


def test_the_adaptive_divergences_weights_carry_no_gradient() -> None:
    student = STUDENT.clone().requires_grad_()
    (produced,) = torch.autograd.grad(adaptive_kl(student, TEACHER, 0.5).sum(), student)
    weight = plain(lambda s, t: head_weight(s, t, 0.5))
    expected = weight * forward_kl(student, TEACHER) + (1 - weight) * reverse_kl(student, TEACHER)
    (reference,) = torch.autograd.grad(expected.sum(), student)
    assert float((produced - reference).abs().max()) < 1e-13


AT_LIMITS = [
    *(("jsd", {"beta": beta}) for beta in (0.0, 1.0)),
    *(("alpha_beta", {"alpha": alpha, "beta": beta}) for alpha, beta in ((1, 0), (0, 1), (0.6, 0), (0, 1.7), (1, 1))),
    *((name, {"skew": 0.0}) for name in ("skewed_forward_kl", "skewed_reverse_kl")),
]


@pytest.mark.parametrize(
    ("name", "parameters"), [*((name, FAMILY[name]) for name in sorted(set(FAMILY) - {"adaptive_kl"})), *AT_LIMITS]
)
def test_the_gradient_is_that_of_finite_differences(name: str, parameters: dict[str, float]) -> None:
    divergence = named_divergence(name, **parameters)
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: divergence(values, TEACHER), (student,), atol=1e-8)


@pytest.mark.parametrize("name", sorted(FAMILY))
def test_it_is_positive_and_zero_only_between_equal_distributions(name: str) -> None:
    divergence = named_divergence(name, **FAMILY[name])
    student, teacher = logits(3, 200), logits(4, 200)
    assert float(divergence(student, teacher).min()) > 1e-6
    assert float(divergence(teacher + 2.5, teacher).abs().max()) < 1e-14  # logits shifted: the same distribution


@pytest.mark.parametrize("name", sorted(FAMILY))
@pytest.mark.parametrize("ruled_out", ["student", "teacher", "both"])
def test_probabilities_that_underflow_leave_value_and_gradient_finite(name: str, ruled_out: str) -> None:
    divergence = named_divergence(name, **FAMILY[name])
    student, teacher = STUDENT.float(), TEACHER.float()
    for label, values in (("student", student), ("teacher", teacher)):
        if ruled_out in (label, "both"):
            values[:, 0] = -1e4
    student.requires_grad_()
    value = divergence(student, teacher).sum()
    (gradient,) = torch.autograd.grad(value, student)
    assert bool(torch.isfinite(value)) and bool(torch.isfinite(gradient).all())


def test_the_terms_of_a_sampled_token_are_their_definitions_and_have_their_slopes() -> None:
    ids = torch.tensor([3, 0, 5, 3])
    known = token_logprobs(TEACHER, ids)
    logprobs, divergence = sampled_terms(STUDENT, TEACHER, ids, known)
    own = [math.log(row[token]) for row, token in zip(STUDENT.softmax(-1).tolist(), ids.tolist(), strict=True)]
    assert torch.allclose(logprobs, torch.tensor(own, dtype=torch.float64), rtol=0, atol=1e-13)
    assert torch.allclose(divergence, plain(kl), rtol=0, atol=1e-13)
    student = STUDENT.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda values: sampled_terms(values, TEACHER, ids, known), (student,), atol=1e-8)
    for shift in (-100.0, 40.0):  # logits shifted: the same distributions
        shifted = sampled_terms(STUDENT + shift, TEACHER - shift / 2, ids, known)
        assert torch.allclose(torch.stack(shifted), torch.stack([logprobs, divergence]), rtol=0, atol=1e-12)


@pytest.mark.parametrize("common", [0.0, -100.0])
@pytest.mark.parametrize("offset", [0.0, 3.0, 130.0, -1000.0])
def test_an_offset_between_the_logits_of_two_models_takes_no_digits(offset: float, common: float) -> None:
    """Two models that nearly agree, in float32: each token with an offset of its own up to the largest."""
    generator, ids = torch.Generator().manual_seed(8), torch.tensor([5, 17, 256, 3999])
    student, noise = (torch.randn(4, 4000, generator=generator) for _ in range(2))
    student = student + common
    teacher = student + 0.01 * noise + offset * torch.tensor([[0.0], [0.1], [0.5], [1.0]])
    exact_student = student.double().requires_grad_()
    exact = reverse_kl(exact_student, teacher.double())
    (wanted,) = torch.autograd.grad(exact.sum(), exact_student)
    student.requires_grad_()
    known = token_logprobs(teacher.double(), ids).float()
    divergence = sampled_terms(student, teacher, ids, known)[1]
    (gradient,) = torch.autograd.grad(divergence.sum(), student)
    assert float((gradient - wanted).norm() / wanted.norm()) < 4e-5  # plainly by log-softmax: 3e-5
    assert torch.allclose(divergence.double(), exact.detach(), rtol=0, atol=3e-6)


@pytest.mark.parametrize("ruled_out", ["student", "teacher", "both"])
def test_the_terms_of_a_sampled_token_stay_finite_where_probabilities_underflow(ruled_out: str) -> None:
    student, teacher = STUDENT.float(), TEACHER.float()
    for label, values in (("student", student), ("teacher", teacher)):
        if ruled_out in (label, "both"):
            values[:, 0] = -1e4
    student.requires_grad_()
    ids = torch.tensor([0, 1, 2, 3])
    logprobs, divergence = sampled_terms(student, teacher, ids, token_logprobs(teacher, ids))
    (gradient,) = torch.autograd.grad((logprobs + divergence).sum(), student)
    assert bool(torch.isfinite(gradient).all())
    assert torch.allclose(logprobs, token_logprobs(student.double(), ids).float(), rtol=1e-6, atol=1e-5)
    exact = reverse_kl(student.double(), teacher.double()).float()
    assert torch.allclose(divergence, exact, rtol=1e-5, atol=1e-2)  # of logits of -10,000


@pytest.mark.parametrize("small", [1e-4, 1e-6])
def test_the_limits_of_jsd_are_the_forward_and_the_reverse_kl(small: float) -> None:
    forward = jsd(STUDENT, TEACHER, small) / small
    reverse = jsd(STUDENT, TEACHER, 1 - small) / small
    assert float((forward - forward_kl(STUDENT, TEACHER)).abs().max()) < 100 * small
    assert float((reverse - reverse_kl(STUDENT, TEACHER)).abs().max()) < 100 * small
    assert torch.equal(jsd(STUDENT, TEACHER, 0.0), forward_kl(STUDENT, TEACHER))
    assert torch.equal(jsd(STUDENT, TEACHER, 1.0), reverse_kl(STUDENT, TEACHER))


def test_skew_zero_is_the_plain_divergence() -> None:
    assert torch.equal(skewed_forward_kl(STUDENT, TEACHER, 0.0), forward_kl(STUDENT, TEACHER))
    assert torch.equal(skewed_reverse_kl(STUDENT, TEACHER, 0.0), reverse_kl(STUDENT, TEACHER))


def test_special_cases_of_alpha_beta_are_the_named_divergences() -> None:
    assert torch.allclose(alpha_beta(STUDENT, TEACHER, 1.0, 0.0), forward_kl(STUDENT, TEACHER), atol=1e-14)
    assert torch.allclose(alpha_beta(STUDENT, TEACHER, 0.0, 1.0), reverse_kl(STUDENT, TEACHER), atol=1e-14)
    squared = (STUDENT.softmax(-1) - TEACHER.softmax(-1)).square().sum(-1) / 2
    assert torch.allclose(alpha_beta(STUDENT, TEACHER, 1.0, 1.0), squared, atol=1e-14)
    hellinger = 2 * (STUDENT.softmax(-1).sqrt() - TEACHER.softmax(-1).sqrt()).square().sum(-1)
    assert torch.allclose(alpha_beta(STUDENT, TEACHER, 0.5, 0.5), hellinger, atol=1e-14)


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.0), (0.0, 0.6)])
def test_alpha_beta_is_continuous_where_a_parameter_is_zero(alpha: float, beta: float) -> None:
    near = alpha_beta(STUDENT, TEACHER, max(alpha, 1e-6), max(beta, 1e-6))
    assert float((alpha_beta(STUDENT, TEACHER, alpha, beta) - near).abs().max()) < 1e-4
