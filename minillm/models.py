"""Load, check and save causal language models; safetensors only, no code from artifacts."""

from __future__ import annotations

import logging
import math
import os
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minillm.embedded import load_embedded_model
from minillm.errors import UserError
from minillm.heads import Head, use_own_head
from minillm.logprobs import head_logits
from minillm.model_directory import Source, check_location
from minillm.tokenizers import explained, loading_options

_log = logging.getLogger(__name__)
# On CPUs the backward pass of fused attention over short masked sequences is slower than the plain products.
_ATTENTION = {"cpu": "eager", "cuda": "sdpa"}
_NUM_PROBE_TOKENS = 4
_HEAD_TOLERANCE = 1e-2  # of the largest logit; bfloat16 heads round differently by less, a transform changes far more


def load_model(source: Source, location: str, revision: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a causal language model in evaluation mode (dropout off), complete and with a head that we can apply."""
    hide_library_output()
    if source == "embedded":
        return load_embedded_model(_ATTENTION[device.type]).to(device, dtype)
    options = {"dtype": dtype, "attn_implementation": _ATTENTION[device.type]}
    model = _complete_model(source, location, revision, options).to(device).eval()
    choose_head(model, location)
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


@torch.no_grad()
def choose_head(model: Any, location: str) -> None:
    """Leave a model whose logits `Head` cannot make, for a transform that it does not know, to its own code.

    A warning says so. UserError when that code asks for more than the last states: every loss would be wrong.
    """
    ids = torch.arange(_NUM_PROBE_TOKENS, device=next(model.parameters()).device)[None]
    own, states = model(input_ids=ids).logits.float(), model.base_model(input_ids=ids).last_hidden_state
    size = states.shape[-1]
    if size == Head.of(model).state_size and _distance(model, states, own) <= _HEAD_TOLERANCE:
        return
    use_own_head(model, size)
    distance = _distance(model, states, own)
    if not distance <= _HEAD_TOLERANCE:
        raise UserError(
            f"{location}: {type(model).__name__} makes its logits in a way that is not supported: its head applied to "
            f"its last states misses them by {distance:.2f} of the largest"
        )
    _warn_of_own_head(type(model).__name__)


def _distance(model: Any, states: Tensor, own: Tensor) -> float:
    """Return how far the logits of our head are from the model's own (B, L, V), as a share of the largest."""
    ours = head_logits(model, states)
    if ours.shape != own.shape:
        return math.inf
    return float((own - ours).abs().max()) / max(1.0, float(own.abs().max()))


@cache
def _warn_of_own_head(kind: str) -> None:
    _log.warning("%s transforms its logits in a way of its own: its code makes them, unfused and slower", kind)


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
