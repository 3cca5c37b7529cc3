"""Load, check and save causal language models; safetensors only, no code from artifacts."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from minillm.attention import loading_attention
from minillm.embedded import load_embedded_model
from minillm.errors import UserError
from minillm.model_directory import Source, check_location
from minillm.probes import check_causal, check_decoding, choose_head
from minillm.tokenizers import explained, loading_options


def load_model(source: Source, location: str, revision: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a causal language model in evaluation mode (dropout off), complete and with a head that we can apply."""
    hide_library_output()
    if source == "embedded":
        return load_embedded_model(loading_attention(device.type)).to(device, dtype)
    options = {"dtype": dtype, "attn_implementation": loading_attention(device.type)}
    model = _complete_model(source, location, revision, options).to(device).eval()
    check_causal(model, location)
    choose_head(model, location)
    check_decoding(model, location)
    return model


def checked_config(directory: Path) -> Any:
    """Return a model's configuration; UserError unless its directory has every tensor of it. Reads no values."""
    hide_library_output()
    return _complete_model("path", str(directory), "", {"device_map": "meta"}).config


def _complete_model(source: Source, location: str, revision: str, options: dict[str, Any]) -> Any:
    """Return a model, none of whose weights is newly made: a library fills the gaps with random ones."""
    from transformers import AutoModelForCausalLM

    check_location(source, location)
    with explained(location, "model"):
        model, info = AutoModelForCausalLM.from_pretrained(
            location, use_safetensors=True, output_loading_info=True, **options, **loading_options(source, revision)
        )
    absent = sorted(map(str, (*info["missing_keys"], *info["mismatched_keys"])))
    if absent:
        raise UserError(f"{location}: {len(absent)} tensors are missing or of another shape, the first: {absent[0]}")
    return model


def check_context(model: Any, num_tokens: int, what: str) -> None:
    """Raise UserError when prompt and response together are longer than the positions the model knows."""
    words = f"{what}: prompt and response together have up to {num_tokens} tokens"
    _require_positions(model, num_tokens, words, "data.max_prompt_tokens or the max_response_tokens in force")


def check_corpus(model: Any, num_tokens: int, what: str) -> None:
    """Raise UserError when a block of the corpus is longer than the positions the model knows."""
    words = f"{what}: blocks of the corpus have {num_tokens} tokens"
    _require_positions(model, num_tokens, words, "data.corpus_block_tokens")


def _require_positions(model: Any, num_tokens: int, words: str, knobs: str) -> None:
    limit = getattr(model.config, "max_position_embeddings", None)
    rope = getattr(model.config, "rope_parameters", None) or {}
    if rope.get("rope_type") == "longrope":  # beyond these, every position hangs on the longest text of the batch
        limit = rope.get("original_max_position_embeddings", limit)
    if limit is not None and num_tokens > limit:
        raise UserError(f"{words}, the model at most {limit}; lower {knobs}")


def load_saved(directory: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a model that a stage published."""
    return load_model("path", str(directory), "", dtype, device)


def hide_library_output() -> None:
    """Keep transformers' progress bars and its table of missing weights, which we refuse in one line, out of ours."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()


def save_model(model: Any, tokenizer: Any, directory: Path) -> None:
    """Write weights (safetensors, the model's dtype), configuration and tokenizer; the directory appears whole."""
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(directory, ignore_errors=True)
    os.replace(temporary, directory)


def num_parameters(model: Any) -> int:
    """Return the number of distinct weights; tied ones count once."""
    return sum(parameter.numel() for parameter in model.parameters())


def cut_head_to_tokenizer(model: Any, tokenizer: Any) -> None:
    """Cut an output head that was padded beyond the tokenizer, in place; a smaller head raises UserError."""
    num_tokens, num_rows = max(tokenizer.get_vocab().values()) + 1, model.get_output_embeddings().weight.shape[0]
    if num_rows < num_tokens:
        raise UserError(f"the model has {num_rows} output rows, its tokenizer ids up to {num_tokens - 1}")
    if num_rows > num_tokens:
        model.resize_token_embeddings(num_tokens)
