"""Gradient checkpointing: the same gradient and the same cache for less memory."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from minillm.checkpointing import recompute_layers
from minillm.decoders import GenericDecoder
from minillm.distiller import distill
from minillm.errors import UserError
from minillm.halves import body_of, response_states
from minillm.padding import padded_texts
from minillm.types import PromptBatch
from tests import tiny, tiny_run

EVERY_MODEL = pytest.mark.parametrize("make_model", tiny.ARCHITECTURES.values(), ids=tiny.ARCHITECTURES.keys())
TEXTS = padded_texts(tiny.random_rows(6, 1, 9, 1), tiny.random_rows(6, 1, 7, 2), tiny.PAD_ID, torch.device("cpu"))


def states_and_kept_bytes(model: Any) -> tuple[Tensor, int]:
    """Return the states with their graph and the bytes that it keeps, weights left out."""
    weights, kept = {parameter.data_ptr() for parameter in model.parameters()}, dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        states = response_states(body_of(model), TEXTS)
    return states, sum(kept.values())


@EVERY_MODEL
def test_the_gradient_is_the_same_and_much_less_is_kept(make_model: Any) -> None:
    plain, again = make_model(3, num_layers=6), make_model(3, num_layers=6)
    recompute_layers(again)
    (expected, much), (produced, little) = states_and_kept_bytes(plain), states_and_kept_bytes(again)
    assert torch.equal(produced, expected)
    assert little < much / 4
    for states in (expected, produced):
        states.cos().sum().backward()
    for one, other in zip(plain.base_model.parameters(), again.base_model.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-5, atol=1e-6)


@EVERY_MODEL
def test_a_decoder_still_reads_every_token_once(make_model: Any) -> None:
    model, widths = make_model(3), []
    recompute_layers(model)

    def note(_: Any, arguments: Any, named: Any) -> None:
        if named["cache"] is not None:  # a head that runs by the model's own code calls a body that does nothing
            widths.append(named["input_ids"].shape[1])

    model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    prompts = PromptBatch(torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.bool), [0])
    decoder, ids = GenericDecoder(model, prompts, 3), [3, 4, 5]
    for token in (6, 7):
        decoder.next_logits()
        decoder.append(torch.tensor([[token]]))
        ids.append(token)
    logits = decoder.next_logits()
    assert widths == [3, 1, 1]
    with torch.no_grad():
        assert torch.allclose(logits, make_model(3)(torch.tensor([ids])).logits[:, -1], atol=1e-5)


def test_a_copy_runs_on_its_own_weights() -> None:
    model = tiny.tiny_llama(3)
    recompute_layers(model)
    other = copy.deepcopy(model)
    with torch.no_grad():
        before = response_states(body_of(other), TEXTS)
        model.model.layers[0].mlp.down_proj.weight.zero_()
        assert torch.equal(response_states(body_of(other), TEXTS), before)
        assert not torch.equal(response_states(body_of(model), TEXTS), before)


def test_a_model_without_layers_to_run_again_is_refused() -> None:
    with pytest.raises(UserError, match="gradient_checkpointing: Linear has no layers"):
        recompute_layers(torch.nn.Linear(2, 2))


def test_no_other_attention_takes_the_mask_of_packed_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a layer that ran again under the wrong attention would see later tokens without a word."""
    monkeypatch.setattr("minillm.packed_rows._NAME", "eager")
    with pytest.raises(RuntimeError, match="size"):
        response_states(body_of(tiny.tiny_gpt2(3)), TEXTS)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_run_recomputes_when_it_is_asked_to(wanted: bool) -> None:
    student = tiny.tiny_llama(1)
    config = tiny_run.changed(tiny_run.DEFAULTS, {"method": "sft", "num_phases": 1})
    run = tiny_run.tiny_run(config, student, tiny.tiny_llama(2), tiny_run.examples(10, seed=3))
    run = replace(run, compute=replace(run.compute, gradient_checkpointing=wanted))
    next(distill(run, lambda actors: {"validation/reverse_kl": 1.0}))
    assert ("forward" in vars(student.model.layers[0])) == wanted
