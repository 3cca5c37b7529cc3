"""Tiny random models of real architectures, in float32, for exactness tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from minillm.probes import choose_head

NUM_TOKENS = 300  # more than one block of the two-level draw
END_ID = 0
PAD_ID = 0


def tiny_gpt2(seed: int, num_layers: int = 2) -> Any:
    """Return a random GPT-2, whose learned positions show any shift by padding."""
    config = GPT2Config(
        vocab_size=NUM_TOKENS,
        n_embd=32,
        n_layer=num_layers,
        n_head=4,
        n_positions=128,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    return _seeded(GPT2LMHeadModel, config, seed)


def tiny_opt(seed: int, num_layers: int = 2) -> Any:
    """Return a random OPT whose states are projected down before the head, as in OPT-350m."""
    config = OPTConfig(
        vocab_size=NUM_TOKENS,
        hidden_size=32,
        ffn_dim=64,
        word_embed_proj_dim=16,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        max_position_embeddings=128,
        init_std=0.3,
        pad_token_id=1,
        attn_implementation="eager",
    )
    return _seeded(OPTForCausalLM, config, seed)


def llama_like(config_kind: Any, model_kind: Any, **changes: Any) -> Callable[..., Any]:
    def make(seed: int, num_layers: int = 2) -> Any:
        """Return a random model whose next-token distributions are far from uniform."""
        config = config_kind(
            vocab_size=NUM_TOKENS,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=num_layers,
            max_position_embeddings=128,
            initializer_range=0.3,
            attn_implementation="eager",
            **{"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8} | changes,
        )
        return _seeded(model_kind, config, seed)

    return make


tiny_llama = llama_like(LlamaConfig, LlamaForCausalLM)
tiny_qwen2 = llama_like(Qwen2Config, Qwen2ForCausalLM)
tiny_qwen3 = llama_like(Qwen3Config, Qwen3ForCausalLM)
# Soft caps on attention and head, and a sliding window shorter than the texts of the tests.
tiny_gemma2 = llama_like(Gemma2Config, Gemma2ForCausalLM, sliding_window=6, final_logit_softcapping=3.0)
# Logits divided by a number that no fused head knows.
tiny_granite = llama_like(GraniteConfig, GraniteForCausalLM, head_dim=8, logits_scaling=3.0)

ARCHITECTURES = {
    "llama": tiny_llama,
    "gpt2": tiny_gpt2,
    "opt": tiny_opt,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
    "gemma2": tiny_gemma2,
    "granite": tiny_granite,
}


def _seeded(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = kind(config).eval()
    choose_head(model, "tiny")
    return model


def random_rows(num_rows: int, smallest: int, largest: int, seed: int) -> list[list[int]]:
    """Return token id rows of random lengths without end tokens."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(smallest, largest + 1, (num_rows,), generator=generator)
    return [torch.randint(1, NUM_TOKENS, (int(length),), generator=generator).tolist() for length in lengths]
