"""What a model is asked when it is loaded: whether it looks ahead, and how its logits come from its last states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GraniteMoeConfig,
    GraniteMoeForCausalLM,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from minillm.attention import decoding_attention, loading_attention
from minillm.decoders import GrowingLayer
from minillm.errors import UserError
from minillm.logprobs import head_logits
from minillm.models import load_saved, save_model
from minillm.packed_model import packed_copy
from minillm.probes import _warn_of_own_head, check_causal, check_decoding, choose_head
from tests import tiny
from tests.saved_model import WORDS, save_tiny, word_tokenizer


def test_a_head_with_an_unknown_transform_keeps_its_own_code_and_one_warning_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_model(tiny.tiny_granite(1), word_tokenizer(WORDS), tmp_path / "granite")
    _warn_of_own_head.cache_clear()
    caplog.clear()
    models = [load_saved(tmp_path / "granite", torch.float32, torch.device("cpu")) for _ in range(2)]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and warnings[0].startswith("GraniteForCausalLM transforms its logits in a way of its own")
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        own = models[1](ids).logits
        assert torch.equal(head_logits(models[1], models[1].base_model(ids).last_hidden_state), own)
        assert torch.equal(models[1](ids).logits, own)  # the body is back in its place


def test_a_head_that_reads_more_than_the_last_states_is_refused() -> None:
    class Looking(LlamaForCausalLM):
        def forward(self, input_ids: Any, **named: Any) -> Any:
            output = super().forward(input_ids, **named)
            output.logits = output.logits.scatter_add(-1, input_ids[..., None], torch.full_like(output.logits, 9.0))
            return output

    with pytest.raises(UserError, match="tiny: Looking makes its logits in a way that is not supported"):
        tiny.llama_like(LlamaConfig, Looking)(1)


def test_a_head_whose_code_asks_for_more_of_the_body_than_states_keeps_it() -> None:
    sizes = {"num_local_experts": 2, "num_experts_per_tok": 1, "logits_scaling": 3.0, "head_dim": 8}
    model = tiny.llama_like(GraniteMoeConfig, GraniteMoeForCausalLM, **sizes)(1)
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.allclose(head_logits(model, model.base_model(ids).last_hidden_state), model(ids).logits, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_a_cap_that_is_not_known_is_found_however_small_the_logits_are(scale: float) -> None:
    class Capped(LlamaForCausalLM):
        def forward(self, input_ids: Any, **named: Any) -> Any:
            output = super().forward(input_ids, **named)
            output.logits = 30 * (output.logits / 30).tanh()
            return output

    model = tiny.llama_like(LlamaConfig, Capped)(1)
    with torch.no_grad():
        model.get_output_embeddings().weight *= scale
    choose_head(model, "tiny")
    states = 1e3 * torch.ones(1, 32)
    expected = 30 * (states @ model.get_output_embeddings().weight.detach().t() / 30).tanh()
    assert torch.allclose(head_logits(model, states), expected, atol=1e-4)


def test_a_body_keeps_a_forward_that_was_put_in_its_place() -> None:
    model, called = tiny.tiny_granite(1), []
    own = model.base_model.forward
    model.base_model.forward = lambda *arguments, **named: called.append(1) or own(*arguments, **named)
    head_logits(model, torch.ones(1, 32))
    assert not called
    model(torch.tensor([[5, 6, 7]]))
    assert called == [1]


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    sizes = {"vocab_size": tiny.NUM_TOKENS, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    model = BertLMHeadModel(BertConfig(**sizes, num_attention_heads=2, initializer_range=0.3)).eval()
    with pytest.raises(UserError, match="here: BertLMHeadModel is no causal language model: a token sees those behind"):
        check_causal(model, "here")


def test_a_model_whose_code_fails_is_one_line() -> None:
    class Failing(LlamaForCausalLM):
        def forward(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("no such layer\nmore")

    model = Failing(tiny.tiny_llama(1).config)
    with pytest.raises(UserError, match=r"here: Failing fails to read a text of 4 tokens: no such layer$"):
        check_causal(model, "here")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make_model", tiny.ARCHITECTURES.values(), ids=tiny.ARCHITECTURES.keys())
def test_every_family_of_the_tests_decodes_as_it_reads(make_model: Any, dtype: torch.dtype) -> None:
    check_decoding(make_model(1).to(dtype), "here")


class Uncached(LlamaForCausalLM):
    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.model.register_forward_pre_hook(self._refuse, with_kwargs=True)

    def _refuse(self, _: Any, given: Any, named: Any) -> None:
        if named.get("cache") is not None:
            raise RuntimeError("no cache here\nmore")


SIZES = {"vocab_size": tiny.NUM_TOKENS, "hidden_size": 16, "num_hidden_layers": 2, "intermediate_size": 32}
HYBRID = SIZES | {"num_attention_heads": 2, "num_key_value_heads": 1, "mamba_d_state": 4, "use_mamba_kernels": False}


@pytest.mark.parametrize("kind", ["mamba", "jamba"])
def test_a_model_whose_state_is_no_cache_of_keys_is_refused(kind: str) -> None:
    model = {
        "mamba": lambda: MambaForCausalLM(MambaConfig(**SIZES)),
        "jamba": lambda: JambaForCausalLM(JambaConfig(**HYBRID, attn_layer_period=2, attn_layer_offset=1)),
    }[kind]()
    with pytest.raises(
        UserError, match=r"^here: .* cannot be decoded: it fails to read a text in pieces with a cache: "
    ):
        check_decoding(model.eval(), "here")


def test_a_model_that_sees_padding_is_refused() -> None:
    model = tiny.tiny_llama(1)
    model.model.register_forward_pre_hook(lambda _, __, named: ((), named | {"attention_mask": None}), with_kwargs=True)
    with pytest.raises(UserError, match=r"^here: .* padded on the left, it does not read a text as it does at once$"):
        check_decoding(model, "here")


def test_a_cache_takes_no_more_than_was_planned() -> None:
    layer, states = GrowingLayer(2), torch.ones(1, 1, 2, 4)
    layer.update(states, states)
    with pytest.raises(RuntimeError):
        layer.update(states[:, :, :1], states[:, :, :1])


def test_a_model_that_fails_with_a_cache_is_refused() -> None:
    with pytest.raises(UserError, match=r"^here: Uncached cannot be decoded: it fails .* with a cache: no cache here$"):
        check_decoding(Uncached(tiny.tiny_llama(1).config), "here")


def test_weights_that_are_not_finite_are_told(tmp_path: Path) -> None:
    saved = save_tiny(tmp_path / "model")
    weights = load_file(saved / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="LlamaForCausalLM gives logits that are not finite"):
        load_saved(saved, torch.float32, torch.device("cpu"))


def test_a_model_decodes_by_fused_attention_where_the_library_has_it_for_its_kind() -> None:
    llama, gemma = tiny.tiny_llama(1), tiny.tiny_gemma2(1)
    assert (decoding_attention(llama), decoding_attention(gemma)) == ("sdpa", "eager")
    assert decoding_attention(packed_copy(llama)) == "sdpa" and llama.config._attn_implementation == "eager"


def test_a_model_that_only_its_own_attention_decodes_right_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fused = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def unscaled(*given: Any, **named: Any) -> Any:
        output, weights = fused(*given, **named)
        return 2 * output, weights

    monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", unscaled)
    model = tiny.tiny_gpt2(1)
    check_decoding(model, "here")
    assert decoding_attention(model) == decoding_attention(packed_copy(model)) == "eager"


def test_off_cpus_a_model_loads_with_what_the_library_has_for_its_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma-2 caps its attention's logits, which the fused one cannot."""
    monkeypatch.setattr("minillm.models.loading_attention", lambda _: loading_attention("cuda"))
    for name, make_model, expected in (("llama", tiny.tiny_llama, "sdpa"), ("gemma2", tiny.tiny_gemma2, "eager")):
        save_model(make_model(1), word_tokenizer(WORDS), tmp_path / name)
        model = load_saved(tmp_path / name, torch.float32, torch.device("cpu"))
        assert model.config._attn_implementation == expected
