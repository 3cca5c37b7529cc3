"""Copies of models with packed layers against the models themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from minillm.checkpointing import recompute_layers
from minillm.decoders import GenericDecoder
from minillm.generation import Decoding, sampled_batches
from minillm.packed_model import is_packed, packed_copy
from minillm.sampling import decodable
from tests import tiny
from tests.test_lean_decoder import PASSES, all_logits, prompts, random_model
from tests.test_sampling import next_distribution


def linear_layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]


@pytest.mark.parametrize("make_model", tiny.ARCHITECTURES.values(), ids=tiny.ARCHITECTURES.keys())
def test_a_packed_copy_decodes_as_the_model(make_model: Any) -> None:
    model = random_model(make_model)
    own, packed = (GenericDecoder(each, prompts(), len(PASSES)) for each in (model, packed_copy(model)))
    for produced, expected in zip(all_logits(packed), all_logits(own), strict=True):
        assert float((produced - expected).abs().max()) < 2e-5 < float(expected.std())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is built without oneDNN")
@pytest.mark.parametrize("is_recomputed", [False, True])
@pytest.mark.parametrize("make_model", tiny.ARCHITECTURES.values(), ids=tiny.ARCHITECTURES.keys())
def test_a_packed_copy_reads_packed_weights_alone(make_model: Any, is_recomputed: bool) -> None:
    model = random_model(make_model)
    if is_recomputed:
        recompute_layers(model)
    packed, expected = packed_copy(model), all_logits(GenericDecoder(model, prompts(), len(PASSES)))
    embedding = model.get_input_embeddings().weight
    for layer in linear_layers(model):
        if layer.weight is not embedding:
            layer.weight.data.zero_()
    for produced, before in zip(all_logits(GenericDecoder(packed, prompts(), len(PASSES))), expected, strict=True):
        assert float((produced - before).abs().max()) < 2e-5


@pytest.mark.parametrize("make_model", tiny.ARCHITECTURES.values(), ids=tiny.ARCHITECTURES.keys())
def test_the_model_is_left_alone(make_model: Any) -> None:
    model = make_model(3)
    packed = packed_copy(model)
    assert not any(is_packed(module) for module in model.modules())
    for own, other in zip(model.parameters(), packed.parameters(), strict=True):
        assert own is other
    packed.base_model.register_forward_hook(lambda *_: None)
    assert not model.base_model._forward_hooks
    assert decodable(packed) is packed


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="no bfloat16 products here")
def test_in_bfloat16_a_packed_copy_is_as_near_the_exact_logits_as_the_model() -> None:
    exact = random_model(tiny.tiny_gpt2)
    rounded = copy.deepcopy(exact).bfloat16()
    exact.load_state_dict(rounded.state_dict())
    wanted = all_logits(GenericDecoder(exact, prompts(), len(PASSES)))
    errors = []
    for model in (packed_copy(rounded), rounded):
        found = all_logits(GenericDecoder(model, prompts(), len(PASSES)))
        differences = [(a - b).square().mean() for a, b in zip(found, wanted, strict=True)]
        errors.append(float(torch.stack(differences).mean().sqrt()))
    assert 0 < errors[0] < 1.1 * errors[1]


def test_a_module_that_stands_at_two_places_is_one_in_the_copy() -> None:
    model = tiny.tiny_opt(3)
    layers = model.model.decoder.layers
    layers[1] = layers[0]
    packed = packed_copy(model).model.decoder.layers
    assert packed[1] is packed[0] is not layers[0]


def same_logits(model: Any) -> bool:
    """Return whether a packed copy predicts what the model does."""
    produced, expected = (
        GenericDecoder(each, prompts(), 0).next_logits().log_softmax(-1) for each in (packed_copy(model), model)
    )
    return torch.allclose(produced, expected, atol=2e-5)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_weights_that_are_made_in_every_call_are_not_packed() -> None:
    model, other = tiny.tiny_opt(3), tiny.tiny_opt(3)
    layer = torch.nn.utils.weight_norm(model.model.decoder.layers[0].fc1)
    layer.weight_g.data *= 3.0
    assert same_logits(model)
    layer = torch.nn.utils.parametrizations.weight_norm(other.model.decoder.layers[0].fc1)
    layer.parametrizations.weight.original0.data *= 3.0
    assert same_logits(other)


def test_a_model_with_a_forward_of_somebody_elses_is_not_copied() -> None:
    model = tiny.tiny_gpt2(3)
    forward = model.forward
    model.forward = lambda *inputs, **named: forward(*inputs, **named)
    assert packed_copy(model) is model
    assert not is_packed(model)


def test_a_head_in_other_numbers_than_the_body_gets_its_own() -> None:
    model = tiny.tiny_qwen2(3).bfloat16()
    model.lm_head.float()
    logits = GenericDecoder(packed_copy(model), prompts(), 0).next_logits()
    expected = GenericDecoder(model, prompts(), 0).next_logits()
    assert float((logits - expected).abs().max()) < 0.05 * float(expected.std())


def test_a_model_is_packed_anew_for_every_sampling() -> None:
    model, decoding = tiny.tiny_gpt2(3), Decoding(5, 0, 4, 1.0, 0, 1.0, 3, -1, tiny.PAD_ID)
    for shift in (0.0, 0.05):
        for parameter in model.parameters():
            parameter.data += shift
        ((_, found),) = sampled_batches(model, None, [[3, 4, 5]], [0], decoding)
        drawn = found.response_ids[0].tolist()
        for place, logprob in enumerate(found.drawn_logprobs[0]):
            exact = next_distribution(model, [3, 4, 5, *drawn[:place]])[drawn[place]].log()
            assert float(logprob) == pytest.approx(float(exact), abs=2e-5)
