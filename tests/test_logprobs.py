from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from minillm.logprobs import head_logits, mixture_logprobs, response_hidden, token_logprobs
from minillm.padding import pad_left, pad_right
from tests import tiny


def plain_logprobs(model: Any, prompt: list[int], response: list[int]) -> list[float]:
    """Score one response alone, without padding, through the model's own forward."""
    ids = torch.tensor([prompt + response])
    with torch.no_grad():
        logprobs = model(ids).logits.float().log_softmax(-1)[0]
    return [float(logprobs[len(prompt) + step - 1, token]) for step, token in enumerate(response)]


@pytest.mark.parametrize("make_model", tiny.ARCHITECTURES.values(), ids=tiny.ARCHITECTURES.keys())
def test_logprobs_on_left_padded_prompts_are_those_of_each_row_alone(make_model: Any) -> None:
    model = make_model(3)
    prompts, responses = tiny.random_rows(5, 1, 9, seed=1), tiny.random_rows(5, 1, 7, seed=2)
    prompt_ids, prompt_mask = pad_left(prompts, tiny.PAD_ID)
    response_ids, response_mask = pad_right(responses, tiny.PAD_ID)
    with torch.no_grad():
        hidden = response_hidden(model, prompt_ids, prompt_mask, response_ids, response_mask)
        logprobs = token_logprobs(head_logits(model, hidden), response_ids)
    for row, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        expected = plain_logprobs(model, prompt, response)
        assert logprobs[row, : len(response)].tolist() == pytest.approx(expected, abs=2e-5)


def test_an_end_token_inside_a_prompt_is_read_as_a_token() -> None:
    model = tiny.tiny_llama(3)
    prompt, response = [5, tiny.END_ID, 7], [8, 9]
    prompt_ids, prompt_mask = pad_left([prompt, [4] * 6], tiny.PAD_ID)
    response_ids, response_mask = pad_right([response, [1]], tiny.PAD_ID)
    with torch.no_grad():
        hidden = response_hidden(model, prompt_ids, prompt_mask, response_ids, response_mask)
        logprobs = token_logprobs(head_logits(model, hidden), response_ids)
    assert logprobs[0].tolist() == pytest.approx(plain_logprobs(model, prompt, response), abs=2e-5)


def test_the_mixture_is_the_weighted_sum_of_probabilities() -> None:
    mixed = mixture_logprobs(torch.tensor(0.5).log(), torch.tensor(0.1).log(), 0.25)
    assert float(mixed) == pytest.approx(math.log(0.25 * 0.5 + 0.75 * 0.1), abs=1e-6)


def test_the_mixture_without_teacher_is_the_student_even_where_the_teacher_is_impossible() -> None:
    student = torch.tensor([-1.0, -2.0])
    assert torch.equal(mixture_logprobs(torch.tensor([float("-inf"), 0.0]), student, 0.0), student)
    never = mixture_logprobs(torch.tensor(float("-inf")), torch.tensor(0.0), 0.2)
    assert float(never) == pytest.approx(math.log(0.8), abs=1e-6)


def test_a_soft_capped_head_is_honoured() -> None:
    model = tiny.tiny_llama(3)
    hidden = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        plain = head_logits(model, hidden)
        model.config.final_logit_softcapping = 2.0
        capped = head_logits(model, hidden)
    assert torch.allclose(capped, 2 * torch.tanh(plain / 2), atol=1e-6)
    assert float(capped.abs().max()) < 2 < float(plain.abs().max())
