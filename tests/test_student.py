from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from minillm.errors import UserError
from minillm.logprobs import head_logits
from minillm.padding import pad_left
from minillm.student import block_influence, cut_model, most_influential_layers
from tests import tiny


@pytest.mark.parametrize("make_model", [tiny.tiny_llama, tiny.tiny_gpt2, tiny.tiny_granite])
def test_a_cut_model_computes_the_kept_layers_in_order(make_model: Any) -> None:
    """A removed layer must act as the identity: a teacher whose dropped layers add nothing gives the same logits."""
    model = make_model(1, num_layers=4)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            outputs = ("o_proj.weight", "down_proj.weight", "c_proj.weight", "c_proj.bias")
            if (".1." in name or ".2." in name) and name.endswith(outputs):
                parameter.zero_()
    student = cut_model(model, [0, 3])
    ids = torch.tensor([[5, 9, 11, 2, 7]])
    with torch.no_grad():
        assert torch.allclose(student(ids).logits, model(ids).logits, atol=1e-5)
    with torch.no_grad():
        hidden = student.base_model(ids).last_hidden_state
        assert torch.allclose(head_logits(student, hidden), student(ids).logits, atol=1e-5)
    assert student.config.num_hidden_layers == 2 and model.config.num_hidden_layers == 4


def test_cutting_leaves_the_teacher_and_its_weights_alone() -> None:
    model = tiny.tiny_llama(1, num_layers=3)
    student = cut_model(model, [0, 2])
    with torch.no_grad():
        student.get_output_embeddings().weight.fill_(0)
    assert float(model.get_output_embeddings().weight.abs().sum()) > 0


def inner_states(model: Any, text: list[int]) -> Any:
    """Return what enters each layer, and what leaves the last one, which has a norm behind it."""
    bare = copy.deepcopy(model)
    bare.transformer.ln_f = torch.nn.Identity()
    return bare(torch.tensor([text]), output_hidden_states=True).hidden_states


def test_block_influence_is_the_mean_angle_between_input_and_output_over_real_tokens() -> None:
    model = tiny.tiny_gpt2(1, num_layers=3)
    texts = tiny.random_rows(5, 2, 8, seed=4)
    produced = block_influence(model, [pad_left(texts[:2], tiny.PAD_ID), pad_left(texts[2:], tiny.PAD_ID)])
    sums, count = [0.0] * 3, 0
    for text in texts:
        with torch.no_grad():
            states = inner_states(model, text)
        count += len(text)
        for layer in range(3):
            for position in range(len(text)):
                before, after = states[layer][0, position], states[layer + 1][0, position]
                sums[layer] += 1 - float(before @ after / (before.norm() * after.norm()))
    assert produced == pytest.approx([total / count for total in sums], abs=1e-5)


def test_the_last_layer_is_judged_before_its_states_are_projected() -> None:
    model = tiny.tiny_opt(1)
    batch = pad_left(tiny.random_rows(5, 2, 8, seed=4), tiny.PAD_ID)
    seen: list[Any] = []
    model.model.decoder.layers[1].register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output)))
    produced = block_influence(model, [batch])
    before, after = (states[batch[1]] for states in seen[0])
    assert before.shape[1] == after.shape[1] == 32 and model.get_output_embeddings().weight.shape[1] == 16
    assert produced[1] == pytest.approx(float((1 - torch.cosine_similarity(before, after, dim=-1)).mean()), abs=1e-5)


def test_the_most_influential_layers_are_kept_in_their_order() -> None:
    assert most_influential_layers([0.9, 0.1, 0.5, 0.1, 0.7], 3) == [0, 2, 4]
    assert most_influential_layers([0.1, 0.1, 0.1], 2) == [0, 1]


def test_keeping_more_layers_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="num_layers = 4; the teacher has 3 layers"):
        most_influential_layers([0.1, 0.2, 0.3], 4)
