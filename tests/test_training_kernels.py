"""The loops of training in C against autograd in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu

from minillm import divergences
from minillm.kernels import training
from minillm.kernels.losses import sampled_terms, sampled_terms_backward
from tests.test_kernels import DTYPES, assert_near, needs_kernels, normalised, numbers


def gradients(function: Callable[..., Tensor], inputs: tuple[Tensor, ...], outer: Tensor) -> tuple[Tensor, ...]:
    """Return the derivatives of sum(outer function(inputs)) in float64."""
    exact = [part.double().requires_grad_() for part in inputs]
    return torch.autograd.grad(function(*exact), exact, outer.double())


@needs_kernels
@DTYPES
@pytest.mark.parametrize("shape", [(1, 1), (3, 2, 6), (300, 577)])
def test_norm_and_its_derivatives(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    states, weight = 1e-2 * numbers(*shape), 1 + 0.1 * numbers(shape[-1], seed=1)
    outer = numbers(*shape, seed=2, dtype=dtype)
    result, scales = training.normalised(states, weight, 1e-4, dtype)
    assert_near(result, normalised(states, weight, 1e-4))
    produced = training.normalised_backward(outer, states, weight, scales)
    expected = gradients(lambda *parts: normalised(*parts, 1e-4), (states, weight), outer)
    for one, other in zip(produced, expected, strict=True):
        assert_near(one, other)


@needs_kernels
def test_what_the_rows_of_several_threads_add_up_to() -> None:
    states, weight, outer = numbers(301, 5), numbers(5, seed=1), numbers(301, 5, seed=2)
    _, scales = training.normalised(states, weight, 1e-4, torch.float32)
    found = []
    try:
        for num_threads in (3, 2, 2):
            torch.set_num_threads(num_threads)
            found.append(training.normalised_backward(outer, states, weight, scales)[1])
    finally:
        torch.set_num_threads(1)
    expected = gradients(lambda *parts: normalised(*parts, 1e-4), (states, weight), outer)[1]
    for produced in found:
        assert_near(produced, expected)
    assert torch.equal(found[1], found[2])


@needs_kernels
@DTYPES
@pytest.mark.parametrize("count", [3, 1000, 5000])
def test_gated_layer_and_its_derivatives(count: int, dtype: torch.dtype) -> None:
    gate, up, outer = (numbers(count, seed=seed, dtype=dtype) for seed in range(3))
    gate[:2] = torch.tensor([300.0, -300.0])
    expected = silu(gate.double()) * up.double()
    assert_near(training.gated(gate, up)[2:], expected[2:])
    assert_near(training.gated(gate, up)[:1], expected[:1])
    by_up = outer.clone()
    result, by_gate = training.gated_backward(gate, up, by_up)
    assert torch.equal(result, training.gated(gate, up))
    exact = gradients(lambda one, other: silu(one) * other, (gate, up), outer)
    for one, other in zip((by_gate, by_up), exact, strict=True):
        assert_near(one[2:], other[2:])
        assert_near(one[:1], other[:1])
        assert abs(float(one[1])) < 1e-30


@needs_kernels
@DTYPES
@pytest.mark.parametrize("is_back", [False, True])
def test_turned_heads(is_back: bool, dtype: torch.dtype) -> None:
    heads, angles = numbers(7, 5, 6, dtype=dtype)[:, :4], numbers(7, 1, 3, seed=1)
    rotation = torch.polar(torch.ones_like(angles), angles)
    pairs = torch.view_as_complex(heads.double().unflatten(-1, (-1, 2)).contiguous())
    expected = torch.view_as_real(pairs * (rotation.conj() if is_back else rotation)).flatten(-2)
    expected[:, :3] *= 0.25
    assert_near(training.turned(heads, rotation, 3, 0.25, is_back), expected)


def sampled(student: Tensor, teacher: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    logprobs, others = student.log_softmax(-1), teacher.double().log_softmax(-1)
    return logprobs.gather(1, ids[:, None]).squeeze(1), (logprobs.exp() * (logprobs - others)).sum(-1)


@needs_kernels
@DTYPES
@pytest.mark.parametrize("num_tokens", [2, 255, 1000])
def test_sampled_terms_and_their_derivative(num_tokens: int, dtype: torch.dtype) -> None:
    """Rows have room between them, as those of a chunk of logits do; the teacher's type is another one."""
    student = (3 * numbers(5, num_tokens + 7) - 40).to(dtype)[:, :num_tokens]
    teacher = (2 * numbers(5, num_tokens, seed=1) + 90).bfloat16()
    ids = torch.tensor([0, num_tokens - 1, 1, num_tokens // 2, 1])
    known = teacher.double().log_softmax(-1).gather(1, ids[:, None]).squeeze(1).float()
    outer = numbers(2, 5, seed=2)
    inputs = student, teacher, ids, known
    logprobs, *results = sampled_terms(*inputs)
    expected = sampled(student.double(), teacher, ids)
    assert torch.allclose(logprobs.double(), expected[0], atol=1e-5)
    assert torch.allclose(results[0].double(), expected[1], atol=1e-5)
    (wanted,) = gradients(lambda logits: torch.stack(sampled(logits, teacher, ids)), (student,), outer)
    assert_near(sampled_terms_backward(inputs, tuple(results), tuple(outer)), wanted)


@needs_kernels
def test_logits_that_change_before_the_derivative_is_asked_for_are_noticed() -> None:
    logits = numbers(2, 300).requires_grad_() * 1.0
    known = torch.zeros(2)
    terms = divergences.sampled_terms(logits, numbers(2, 300, seed=1), known.long(), known)
    with torch.no_grad():
        logits += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        terms[1].sum().backward()


@needs_kernels
def test_a_token_too_rare_for_a_number_has_its_logprob_and_its_gradient() -> None:
    student = torch.tensor([[0.0, -200.0, 1.0]])
    teacher, ids = torch.tensor([[0.5, -150.0, 1.0]]), torch.tensor([1])
    inputs = student, teacher, ids, teacher.log_softmax(-1)[:, 1]
    logprobs, *results = sampled_terms(*inputs)
    assert float(logprobs) == pytest.approx(-201.31326)
    ones = torch.ones(1)
    (wanted,) = gradients(lambda logits: torch.stack(sampled(logits, teacher, ids)), (student,), torch.ones(2, 1))
    produced = sampled_terms_backward(inputs, tuple(results), (ones, ones))
    assert torch.allclose(produced.double(), wanted, atol=1e-6)


@needs_kernels
def test_logits_that_are_not_finite_are_told() -> None:
    student = numbers(3, 300)
    student[0, 5], student[1, 299], student[2] = torch.nan, torch.inf, -torch.inf
    results = sampled_terms(student, numbers(3, 300, seed=1), torch.zeros(3, dtype=torch.int64), torch.zeros(3))
    assert results[0].isnan().all() and results[1].isnan().all()


@needs_kernels
def test_kernels_do_not_hang_on_the_type_that_new_tensors_have_by_default() -> None:
    student, teacher, ids = numbers(3, 300), numbers(3, 300, seed=1), torch.tensor([1, 2, 3])
    known = teacher.log_softmax(-1).gather(1, ids[:, None]).squeeze(1)
    wanted = sampled_terms(student, teacher, ids, known)
    try:
        torch.set_default_dtype(torch.float64)
        found = sampled_terms(student, teacher, ids, known)
        _, scales = training.normalised(student, torch.ones(300, dtype=torch.float32), 1e-4, torch.float32)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert_near(scales, student.double().square().mean(-1).add(1e-4).rsqrt())


@needs_kernels
@pytest.mark.parametrize("token", [-1, 300])
def test_a_token_beyond_the_vocabulary_is_refused(token: int) -> None:
    with pytest.raises(AssertionError):
        sampled_terms(numbers(1, 300), numbers(1, 300), torch.tensor([token]), torch.zeros(1))
