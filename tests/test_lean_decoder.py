"""The decoder of the Llama family against the models themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from minillm.decoders import GenericDecoder
from minillm.lean_decoder import LeanDecoder, LeanModel
from minillm.llama_family import is_supported
from minillm.padding import pad_left
from minillm.sampling import decodable, sample_responses
from minillm.types import PromptBatch
from tests import tiny

pytestmark = pytest.mark.usefixtures("operations")

FAMILY = {name: tiny.ARCHITECTURES[name] for name in ("llama", "qwen2", "qwen3")}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 64}
VARIANTS = FAMILY | {
    "narrow heads": tiny.llama_like(LlamaConfig, LlamaForCausalLM, head_dim=16, rms_norm_eps=1e-2),
    "biases": tiny.llama_like(LlamaConfig, LlamaForCausalLM, attention_bias=True, mlp_bias=True),
    "scaled positions": tiny.llama_like(LlamaConfig, LlamaForCausalLM, rope_parameters=YARN),
    "tied": tiny.llama_like(LlamaConfig, LlamaForCausalLM, tie_word_embeddings=True, hidden_act="gelu"),
    "one key head": tiny.llama_like(Qwen3Config, Qwen3ForCausalLM, num_key_value_heads=1),
}
NUM_ROWS = 5
PASSES = [1, 1, 0, 0, 1, 0, 0, 0, 1]  # after which tokens the logits are asked for: lone and several pending tokens


def random_model(make_model: Any) -> Any:
    """Return a model whose biases and norms are not those of initialisation either."""
    model, generator = make_model(3), torch.Generator().manual_seed(4)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def prompts() -> PromptBatch:
    return PromptBatch(*pad_left(tiny.random_rows(NUM_ROWS, 2, 9, 3), tiny.PAD_ID), list(range(NUM_ROWS)))


def all_logits(decoder: Any) -> list[Tensor]:
    """Return the logits of every pass; three rows retire on the way."""
    found, generator = [], torch.Generator().manual_seed(6)
    tokens = torch.randint(1, tiny.NUM_TOKENS, (len(PASSES), NUM_ROWS), generator=generator)
    rows = torch.arange(NUM_ROWS)
    for place, is_asked in enumerate(PASSES):
        if is_asked:
            found.append(decoder.next_logits())
        decoder.append(tokens[place, rows][:, None])
        if place == 5:
            rows = torch.tensor([1, 4])
            decoder.keep(rows)
    return [*found, decoder.next_logits()]


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("make_model", VARIANTS.values(), ids=VARIANTS.keys())
def test_logits_are_the_models(make_model: Any, soft_cap: float | None) -> None:
    model = random_model(make_model)
    model.config.final_logit_softcapping = soft_cap
    lean, generic = LeanDecoder(LeanModel(model), prompts(), len(PASSES)), GenericDecoder(model, prompts(), len(PASSES))
    for produced, expected in zip(all_logits(lean), all_logits(generic), strict=True):
        assert float((produced - expected).abs().max()) < 3e-5 < float(expected.std())  # each is within 2e-5 in float64


@pytest.mark.parametrize("make_model", FAMILY.values(), ids=FAMILY.keys())
def test_in_bfloat16_logits_are_as_near_the_exact_ones_as_the_models_own(make_model: Any) -> None:
    exact = random_model(make_model)
    rounded = copy.deepcopy(exact).bfloat16()
    exact.load_state_dict(rounded.state_dict())
    wanted = all_logits(GenericDecoder(exact, prompts(), len(PASSES)))
    errors = []
    for decoder in (
        LeanDecoder(LeanModel(rounded), prompts(), len(PASSES)),
        GenericDecoder(rounded, prompts(), len(PASSES)),
    ):
        differences = [(a - b).square().mean() for a, b in zip(all_logits(decoder), wanted, strict=True)]
        errors.append(float(torch.stack(differences).mean().sqrt()))
    assert 0 < errors[0] < 1.1 * errors[1]


def test_only_models_that_are_known_to_be_of_the_family_are_taken() -> None:
    assert {name for name, make in tiny.ARCHITECTURES.items() if is_supported(make(1))} == set(FAMILY)
    window = tiny.tiny_qwen3(1)
    window.config.layer_types = ["full_attention", "sliding_attention"]
    assert not is_supported(window)
    mixed = tiny.tiny_llama(1)
    mixed.lm_head.to(torch.bfloat16)
    assert not is_supported(mixed)
    assert not is_supported(type("Changed", (type(tiny.tiny_llama(1)),), {})(tiny.tiny_llama(1).config))


def test_the_decoder_reads_the_weights_of_its_making() -> None:
    model = random_model(tiny.tiny_llama)
    before = all_logits(LeanDecoder(LeanModel(model), prompts(), len(PASSES)))
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight.mul_(1.5)
    after = all_logits(LeanDecoder(LeanModel(model), prompts(), len(PASSES)))
    expected = all_logits(GenericDecoder(model, prompts(), len(PASSES)))
    assert float((after[0] - expected[0]).abs().max()) < 2e-5 < float((before[0] - expected[0]).abs().max())


@pytest.mark.parametrize(
    ("picks", "keep_states", "student", "teacher"),
    [
        ([0, 1, 0, 0, 1, 0, 0, 0, 1, 0], False, [0, 2, 1, 2, 1, 1, 2], [1, 3, 4]),
        ([0, 1, 0, 0, 1, 0, 0, 0, 1, 0], True, [0, 2, 1, 2, 1, 1, 2], [1, 3, 4, 1]),
        ([0, 0, 0, 0], True, [0, 1, 1, 1], [3]),
        ([0, 0, 0, 0], False, [0, 1, 1, 1], []),
    ],
)
def test_one_forward_pass_per_token_whichever_model_is_picked(
    picks: list[int], keep_states: bool, student: list[int], teacher: list[int]
) -> None:
    """The tokens of a row that pass through each model, beyond the prompt in the first pass; no padding does.

    With its states kept the teacher reads the rest at the end: every token once, without mixing in one pass.
    """
    models, widths = [decodable(tiny.tiny_llama(seed)) for seed in (1, 2)], ([], [])
    for model, seen in zip(models, widths, strict=True):
        model.embedding.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0].numel()))
    out = sample_responses(
        *models,
        prompts(),
        uniforms=torch.full((NUM_ROWS, len(picks)), 0.5, dtype=torch.float64),
        teacher_picks=torch.tensor([bool(pick) for pick in picks]).expand(NUM_ROWS, -1),
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        end_id=-1,
        pad_id=tiny.PAD_ID,
        keep_teacher_states=keep_states,
    )
    assert out.response_ids.shape[1] == len(picks)
    for seen, expected in zip(widths, (student, teacher), strict=True):
        beyond = [seen[0] - int(prompts().prompt_mask.sum()), *seen[1:]] if seen else []
        assert beyond == [NUM_ROWS * num_tokens for num_tokens in expected]
