"""Every part of our own layers against the same written plainly, in float64, outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import silu
from transformers import Qwen3Config, Qwen3ForCausalLM

from minillm import lean_body, lean_parts
from minillm.bodies import LibraryBody
from minillm.checkpointing import recompute_layers
from minillm.halves import body_of, response_states
from minillm.lean_attention import Layout, attended, fused_attention, turned
from minillm.lean_body import LeanBody
from minillm.lean_parts import Linears, embedded, gated, normalised
from minillm.llama_family import pair_order
from minillm.packed_rows import text_columns
from tests import tiny
from tests.test_logprobs import ragged_texts

pytestmark = pytest.mark.usefixtures("operations")

LENGTHS = torch.tensor([3, 1, 5])
NUM_TOKENS, NUM_HEADS, NUM_KEYS, HEAD_SIZE = int(LENGTHS.sum()), 6, 2, 4
_generator = torch.Generator()


@pytest.fixture(autouse=True)
def _seed() -> None:
    _generator.manual_seed(5)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=_generator, dtype=torch.float64).requires_grad_()


def linear_layer(num_inputs: int, num_outputs: int, bias: bool = False) -> nn.Linear:
    layer = nn.Linear(num_inputs, num_outputs, bias=bias, dtype=torch.float64)
    for parameter in layer.parameters():
        parameter.data = random(*parameter.shape).detach()
    return layer


def check_same(ours: Callable[[], Tensor], plain: Callable[[], Tensor], tensors: Sequence[Tensor]) -> None:
    """Compare outputs and gradients by the tensors; twice, as gradients add up."""
    expected = plain()
    by_output = random(*expected.shape).detach()
    gradients = torch.autograd.grad(expected, tensors, by_output)
    for times in (1, 2):
        produced = ours()
        assert torch.allclose(produced, expected, rtol=0, atol=1e-12)
        produced.backward(by_output)
        for tensor, gradient in zip(tensors, gradients, strict=True):
            assert tensor.grad is not None
            assert torch.allclose(tensor.grad, times * gradient, rtol=0, atol=1e-10)


def layout(lengths: Tensor = LENGTHS) -> Layout:
    columns = text_columns(lengths)
    bias = torch.full((columns.shape[1], columns.shape[1]), torch.finfo(torch.float64).min, dtype=torch.float64)
    angles = random(int(lengths.sum()), 1, HEAD_SIZE // 2).detach()
    return Layout(columns, bias.triu_(1), torch.polar(torch.ones_like(angles), angles))


@pytest.mark.parametrize("order", [None, torch.tensor([2, 6, 0, 1, 7, 5, 3, 4])], ids=["in turn", "mixed"])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_layers_that_read_the_same_are_one_product(bias: bool, order: Tensor | None) -> None:
    layers, states = [linear_layer(5, size, bias) for size in (4, 2, 2)], random(NUM_TOKENS, 5)
    parameters = [parameter for layer in layers for parameter in layer.parameters()]

    def plain() -> Tensor:
        outputs = torch.cat([layer(states) for layer in layers], dim=1)
        return outputs if order is None else outputs[:, order]

    check_same(lambda: Linears(layers, torch.float64, order)(states), plain, [states, *parameters])


@pytest.mark.parametrize("order", [None, torch.tensor([2, 4, 0, 1, 3])], ids=["in turn", "mixed"])
def test_the_norm(order: Tensor | None) -> None:
    class Norm:
        weight, variance_epsilon = random(5), 0.1

    states = random(NUM_TOKENS, 2, 5)

    def plain() -> Tensor:
        weight = Norm.weight if order is None else Norm.weight[order]
        return states / (states.square().mean(dim=-1, keepdim=True) + 0.1).sqrt() * weight

    check_same(lambda: normalised(states, Norm, torch.float64, order), plain, [states, Norm.weight])


@pytest.mark.parametrize("num_numbers", [lean_parts._PIECE_NUMBERS, 14, 1], ids=["at once", "two rows", "a row"])
def test_the_gated_layer(num_numbers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_parts, "_PIECE_NUMBERS", num_numbers)  # nine rows of seven: the last piece is smaller
    layers = [linear_layer(*size) for size in ((5, 7), (5, 7), (7, 5))]
    gate, up, down = layers
    states, ours = random(NUM_TOKENS, 5), [Linears([layer], torch.float64) for layer in layers]

    def plain() -> Tensor:
        result: Tensor = down(silu(gate(states)) * up(states))
        return result

    check_same(lambda: gated(states, *ours), plain, [states, *(layer.weight for layer in layers)])


def test_the_rotation_turns_numbers_that_stand_half_a_head_apart_in_the_model() -> None:
    heads, rotation = random(NUM_TOKENS, 5, HEAD_SIZE), layout().rotation
    order = pair_order(HEAD_SIZE)

    def plain() -> Tensor:
        one, other = heads.chunk(2, dim=-1)
        cosine, sine = rotation.real, rotation.imag
        pairs = torch.cat([one * cosine - other * sine, one * sine + other * cosine], dim=-1)[:, :, order]
        return torch.cat([0.3 * pairs[:, :2], pairs[:, 2:]], dim=1)

    check_same(lambda: turned(heads[:, :, order], 2, rotation, 0.3), plain, [heads])


def attended_one_by_one(queries: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Attend token by token and head by head, to the earlier tokens of the same text."""
    results = []
    for start, length in zip((lengths.cumsum(0) - lengths).tolist(), lengths.tolist(), strict=True):
        for place in range(start, start + length):
            seen = slice(start, place + 1)
            heads = []
            for head in range(NUM_HEADS):
                of_key = head // (NUM_HEADS // NUM_KEYS)
                weights = (keys[seen, of_key] @ queries[place, head]).softmax(dim=0)
                heads.append(weights @ values[seen, of_key])
            results.append(torch.stack(heads))
    return torch.stack(results)


@pytest.mark.parametrize("lengths", [LENGTHS, torch.tensor([3, 3, 3]), torch.tensor([9])], ids=str)
@pytest.mark.parametrize("attention", [attended, fused_attention], ids=["plain", "fused"])
def test_attention_stays_within_each_text(lengths: Tensor, attention: Any) -> None:
    heads, values = random(NUM_TOKENS, NUM_HEADS + NUM_KEYS, HEAD_SIZE), random(NUM_TOKENS, NUM_KEYS, HEAD_SIZE)
    check_same(
        lambda: attention(heads, values, layout(lengths)),
        lambda: attended_one_by_one(*heads.split([NUM_HEADS, NUM_KEYS], dim=1), values, lengths),
        [heads, values],
    )


def test_the_embedding() -> None:
    ids = torch.tensor([2, 0, 2, 5])
    for padding_id in (None, 2):  # whose row learns nothing in the library
        table = nn.Embedding(6, 3, padding_idx=padding_id, dtype=torch.float64)
        check_same(partial(embedded, table, ids), partial(table, ids), [table.weight])


def test_what_is_frozen_gets_no_gradient() -> None:
    model = tiny.tiny_qwen2(3)
    frozen = [*model.model.layers[0].parameters(), model.model.embed_tokens.weight]
    for parameter in frozen:
        parameter.requires_grad_(False)
    response_states(body_of(model), ragged_texts()).sum().backward()
    assert all(parameter.grad is None for parameter in frozen)
    assert all(parameter.grad is not None for parameter in model.model.layers[1].parameters())


@pytest.mark.parametrize("make_model", [tiny.tiny_llama, tiny.tiny_qwen2, tiny.tiny_qwen3])
def test_bfloat16_products_stay_within_their_rounding(make_model: Any) -> None:
    """As far from float32 as the library's layers under autocast are, give or take a third."""
    texts, model = ragged_texts(20), make_model(3)
    factors = torch.randn(int(texts.response_mask.sum()), 32, generator=torch.Generator().manual_seed(4))

    def results(body: Any) -> list[Tensor]:
        model.zero_grad()
        states = response_states(body, texts)
        (factors * states).sum().backward()
        return [states.detach(), *(parameter.grad for parameter in model.base_model.parameters())]

    def distance(found: list[Tensor]) -> float:
        pairs = zip(found, exact, strict=True)
        return sum(float((a - b).norm() / b.norm()) for a, b in pairs if float(b.norm()) > 1e-3) / len(found)

    exact = results(body_of(model))
    ours, theirs = (
        distance(results(body)) for body in (body_of(model, torch.bfloat16), LibraryBody(model, torch.bfloat16))
    )
    assert 0 < ours < 1.33 * theirs < 0.1


ROPES: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 2.0},
    "dynamic": {"factor": 2.0},
    "yarn": {"factor": 2.0, "original_max_position_embeddings": 64},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


@pytest.mark.parametrize("rope", ROPES)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("heads", [(4, 4), (6, 2), (3, 1)], ids=str)
def test_states_and_gradients_are_the_librarys(rope: str, bias: bool, heads: tuple[int, int]) -> None:
    """Of models whose norms, biases and rotations are not the plain ones, with a token of the texts that pads."""
    parameters = {"rope_type": rope, "rope_theta": 100.0, **ROPES[rope]}
    changes = {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "head_dim": 6, "pad_token_id": 7}
    make = tiny.llama_like(Qwen3Config, Qwen3ForCausalLM, attention_bias=bias, rope_parameters=parameters, **changes)
    model, generator = make(3), torch.Generator().manual_seed(6)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    texts = ragged_texts()
    texts.prompt_ids[0, -1] = 7
    factors = torch.randn(int(texts.response_mask.sum()), 32, generator=generator)
    found = []
    assert isinstance(body_of(model), LeanBody)
    for body in (body_of(model), LibraryBody(model, torch.float32)):
        model.zero_grad()
        states = response_states(body, texts)
        (factors * states).sum().backward()
        found.append([states.detach(), *(parameter.grad for parameter in model.base_model.parameters())])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max().clamp(min=1)))


def test_biases_alone_can_be_trained() -> None:
    model = tiny.tiny_qwen2(3)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("v_proj.bias"))
    response_states(body_of(model), ragged_texts()).square().sum().backward()
    ours = [layer.self_attn.v_proj.bias.grad for layer in model.model.layers]
    model.zero_grad()
    response_states(LibraryBody(model, torch.float32), ragged_texts()).square().sum().backward()
    for gradient, layer in zip(ours, model.model.layers, strict=True):
        assert torch.allclose(gradient, layer.self_attn.v_proj.bias.grad, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_body_that_is_made_anew_has_the_weights_of_now() -> None:
    model, texts = tiny.tiny_llama(3), ragged_texts()
    before = response_states(body_of(model), texts)
    for layer in (model.model.layers[0].self_attn.k_proj, model.model.layers[1].mlp.up_proj):
        layer.weight.mul_(2)
    now = response_states(body_of(model), texts)
    assert torch.allclose(now, response_states(LibraryBody(model, torch.float32), texts), atol=1e-5)
    assert not torch.allclose(now, before, atol=1e-2)


def test_layers_run_again_only_where_a_gradient_is_wanted() -> None:
    model, texts, calls = tiny.tiny_llama(3), ragged_texts(), []
    recompute_layers(model)
    body = body_of(model)
    assert isinstance(body, LeanBody)
    own = lean_body.LeanLayer.__call__

    def counted(self: Any, *arguments: Any) -> Tensor:
        calls.append(1)
        return own(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lean_body.LeanLayer, "__call__", counted)
        with torch.no_grad():
            response_states(body, texts)
        assert len(calls) == 2
        response_states(body, texts).sum().backward()
        assert len(calls) == 6
