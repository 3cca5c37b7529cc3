from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma2ForCausalLM, GraniteForCausalLM

from minillm.halves import body_of, response_states
from minillm.lean_body import LeanBody
from minillm.logprobs import head_logits, mixture_logprobs, token_logprobs
from minillm.packed_rows import packs
from minillm.padding import padded_texts
from minillm.types import Texts
from tests import tiny


def plain_logprobs(model: Any, prompt: list[int], response: list[int]) -> list[float]:
    """Score one response alone, without padding, through the model's own forward."""
    ids = torch.tensor([prompt + response])
    with torch.no_grad():
        logprobs = model(ids).logits.float().log_softmax(-1)[0]
    return [float(logprobs[len(prompt) + step - 1, token]) for step, token in enumerate(response)]


def ragged_texts(num_rows: int = 5) -> Texts:
    prompts, responses = tiny.random_rows(num_rows, 1, 9, seed=1), tiny.random_rows(num_rows, 1, 7, seed=2)
    return padded_texts(prompts, responses, tiny.PAD_ID, torch.device("cpu"))


def unpadded(texts: Texts) -> list[tuple[list[int], list[int]]]:
    """Return prompt and response of each row."""
    prompts = [ids[kept].tolist() for ids, kept in zip(texts.prompt_ids, texts.prompt_mask, strict=True)]
    responses = [ids[kept].tolist() for ids, kept in zip(texts.response_ids, texts.response_mask, strict=True)]
    return list(zip(prompts, responses, strict=True))


EVERY_MODEL = pytest.mark.parametrize("make_model", tiny.ARCHITECTURES.values(), ids=tiny.ARCHITECTURES.keys())


@EVERY_MODEL
def test_logprobs_on_left_padded_prompts_are_those_of_each_row_alone(make_model: Any) -> None:
    model, texts = make_model(3), ragged_texts()
    with torch.no_grad():
        logits = head_logits(model, response_states(body_of(model), texts))
        logprobs = token_logprobs(logits, texts.response_ids[texts.response_mask])
    expected = [value for prompt, response in unpadded(texts) for value in plain_logprobs(model, prompt, response)]
    assert logprobs.tolist() == pytest.approx(expected, abs=2e-5)


@EVERY_MODEL
def test_gradients_of_texts_in_one_row_are_the_sum_of_those_of_each_text_alone(make_model: Any) -> None:
    model, texts = make_model(3), ragged_texts()
    factors = torch.randn(int(texts.response_mask.sum()), 1, generator=torch.Generator().manual_seed(4))

    def gradients(loss: Tensor) -> list[Tensor]:
        model.zero_grad()
        loss.backward()
        return [parameter.grad for parameter in model.base_model.parameters()]

    found = gradients((factors * response_states(body_of(model), texts).cos()).sum())
    alone = []
    for row, (prompt, response) in enumerate(unpadded(texts)):
        states = model.base_model(torch.tensor([prompt + response])).last_hidden_state[0, len(prompt) - 1 : -1]
        start = int(texts.response_mask[:row].sum())
        alone.append(gradients((factors[start : start + len(response)] * states.cos()).sum()))
    for produced, *parts in zip(found, *alone, strict=True):
        expected = torch.stack(parts).sum(dim=0)
        assert float((produced - expected).abs().max()) <= 1e-4 * max(1.0, float(expected.abs().max()))


@EVERY_MODEL
def test_a_body_sees_no_padding_where_its_attention_can_be_laid_out(make_model: Any) -> None:
    model, texts, widths = make_model(3), ragged_texts(), []
    model.base_model.register_forward_pre_hook(
        lambda module, arguments, named: widths.append(named["input_ids"].shape), with_kwargs=True
    )
    body, lengths = body_of(model), texts.lengths()  # a model that is watched is the library's to run
    response_states(body, texts)
    padded = (len(lengths), max(lengths))
    assert widths == [(1, sum(lengths)) if packs(model) else padded]
    assert body.num_positions(lengths) == (sum(lengths) if packs(model) else padded[0] * padded[1])
    assert packs(model) == (type(model) not in (Gemma2ForCausalLM, GraniteForCausalLM))
    assert model.config._attn_implementation == "eager"


def test_a_model_with_a_sliding_window_is_not_laid_out() -> None:
    model = tiny.tiny_qwen2(3)
    model.config.layer_types = ["full_attention", "sliding_attention"]
    assert not packs(model) and not isinstance(body_of(model), LeanBody)


def test_an_end_token_inside_a_prompt_is_read_as_a_token() -> None:
    model = tiny.tiny_llama(3)
    prompt, response = [5, tiny.END_ID, 7], [8, 9]
    texts = padded_texts([prompt, [4] * 6], [response, [1]], tiny.PAD_ID, torch.device("cpu"))
    with torch.no_grad():
        logits = head_logits(model, response_states(body_of(model), texts))[: len(response)]
        logprobs = token_logprobs(logits, torch.tensor(response))
    assert logprobs.tolist() == pytest.approx(plain_logprobs(model, prompt, response), abs=2e-5)


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


def test_an_empty_prompt_is_no_place_to_predict_from() -> None:
    texts = padded_texts([[5, 6], [7]], [[8, 9], [8]], tiny.PAD_ID, torch.device("cpu"))
    texts.prompt_mask[1] = False
    with pytest.raises(AssertionError, match="a prompt is empty"):
        response_states(body_of(tiny.tiny_llama(3)), texts)
