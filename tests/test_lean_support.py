"""What our own layers leave to the library's: models that are not as the library makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from minillm import lean_body
from minillm.bodies import LibraryBody
from minillm.halves import body_of, response_states
from minillm.probes import choose_head
from minillm.sampling import decodable
from tests import tiny
from tests.test_logprobs import ragged_texts
from tests.test_sampling import next_distribution, sample


class Doubled(nn.Linear):
    def forward(self, states: Tensor) -> Tensor:
        return 2 * super().forward(states)


class Wrapped(nn.Module):
    """An adapter around a layer, with the names of its fields."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.base_layer, self.in_features = layer, layer.in_features

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = 2 * self.base_layer(states)
        return result


class WithNorm(Qwen3RMSNorm):  # type: ignore[misc]
    def forward(self, states: Tensor) -> Tensor:
        return 2 * super().forward(states)


class Scaled(nn.Embedding):
    def forward(self, ids: Tensor) -> Tensor:
        return 2 * super().forward(ids)


def hooked(model: Any) -> None:
    model.model.layers[0].mlp.register_forward_hook(lambda module, inputs, output: 2 * output)


def wrapped(model: Any) -> None:
    attention = model.model.layers[0].self_attn
    attention.q_proj = Wrapped(attention.q_proj)


def given_another_forward(model: Any) -> None:
    layer = model.model.layers[0].mlp
    layer.forward = lambda states: 2 * type(layer).forward(layer, states)


def cut(model: Any) -> None:
    model.config.num_hidden_layers = model.model.config.num_hidden_layers = 1


CHANGES: dict[str, Callable[[Any], None]] = {
    "an adapted layer": lambda model: setattr(model.model.layers[1].self_attn.o_proj, "__class__", Doubled),
    "a wrapped layer": wrapped,
    "another norm": lambda model: setattr(model.model.norm, "__class__", WithNorm),
    "another embedding": lambda model: setattr(model.model.embed_tokens, "__class__", Scaled),
    "a hook": hooked,
    "another forward": given_another_forward,
    "fewer layers than there are": cut,
}


def odd_model(name: str) -> Any:
    if name == "a bias in the gated layer":
        return tiny.llama_like(LlamaConfig, LlamaForCausalLM, mlp_bias=True)(3)
    if name == "another activation":
        return tiny.llama_like(Qwen2Config, Qwen2ForCausalLM, hidden_act="gelu")(3)
    model = tiny.tiny_qwen3(3)
    CHANGES[name](model)
    return model


@pytest.mark.parametrize("name", ["a bias in the gated layer", "another activation", *CHANGES])
def test_layers_that_are_not_plain_stay_with_the_library_and_are_right(name: str) -> None:
    model, texts = odd_model(name), ragged_texts()
    for parameter in model.parameters():
        parameter.data += 0.01
    assert isinstance(body_of(model), LibraryBody)
    with torch.no_grad():
        produced = response_states(body_of(model), texts)
        expected = []
        for row, mask in enumerate(texts.response_mask):
            prompt = texts.prompt_ids[row][texts.prompt_mask[row]]
            ids = torch.cat([prompt, texts.response_ids[row][mask]])[None]
            expected.append(model.base_model(ids).last_hidden_state[0, len(prompt) - 1 : -1])
    assert torch.allclose(produced, torch.cat(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", sorted({*CHANGES} - {"another embedding"}))  # which our decoder calls itself
def test_decoding_runs_what_was_put_into_a_model(name: str) -> None:
    model, prompt, uniforms = odd_model(name), [3, 4, 5], torch.linspace(0.1, 0.9, 4, dtype=torch.float64)[None]
    for parameter in model.parameters():
        parameter.data += 0.01
    out = sample(decodable(model), None, [prompt], [False] * 4, uniforms, end_id=-1)
    for place, logprob in enumerate(out.drawn_logprobs[0]):
        drawn = out.response_ids[0].tolist()
        exact = next_distribution(model, prompt + drawn[:place])[drawn[place]].log()
        assert float(logprob) == pytest.approx(float(exact), abs=1e-5)


def test_a_head_that_is_not_plain_makes_its_own_logits_in_decoding() -> None:
    model, prompt, uniforms = tiny.tiny_qwen3(3), [3, 4, 5], torch.linspace(0.1, 0.9, 4, dtype=torch.float64)[None]
    model.lm_head.register_forward_hook(lambda module, inputs, output: 3 * output)
    choose_head(model, "tiny")
    out = sample(decodable(model), None, [prompt], [False] * 4, uniforms, end_id=-1)
    for place, logprob in enumerate(out.drawn_logprobs[0]):
        drawn = out.response_ids[0].tolist()
        exact = next_distribution(model, prompt + drawn[:place])[drawn[place]].log()
        assert float(logprob) == pytest.approx(float(exact), abs=1e-5)


def test_dropout_and_mixed_numbers_are_not_ours() -> None:
    training, mixed = tiny.tiny_llama(3).train(), tiny.tiny_llama(3)
    training.config.attention_dropout = 0.5
    mixed.model.layers[0].mlp.double()
    assert not any(lean_body.is_supported(model) for model in (training, mixed))
