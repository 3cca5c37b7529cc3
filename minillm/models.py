"""Load, check and save causal language models and their tokenizers; safetensors only, no code from artifacts."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from minillm.embedded import load_embedded_model, load_embedded_tokenizer
from minillm.errors import UserError

Source = Literal["embedded", "path", "hub"]
# On CPUs the backward pass of fused attention over short masked sequences is slower than the plain products.
_ATTENTION = {"cpu": "eager", "cuda": "sdpa"}


def load_tokenizer(source: Source, location: str, revision: str) -> Any:
    """Return the tokenizer of a model, with an end token and a padding token (the end token if it has none)."""
    if source == "embedded":
        return load_embedded_tokenizer()
    from transformers import AutoTokenizer

    if source == "path":
        check_model_directory(Path(location))
    tokenizer = AutoTokenizer.from_pretrained(location, **_loading_options(source, revision))
    if tokenizer.eos_token_id is None:
        raise UserError(f"{location}: the tokenizer has no end-of-sequence token; responses could not end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(source: Source, location: str, revision: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a causal language model in evaluation mode (dropout off)."""
    hide_library_bars()
    if source == "embedded":
        return load_embedded_model(_ATTENTION[device.type]).to(device, dtype)
    from transformers import AutoModelForCausalLM

    if source == "path":
        check_model_directory(Path(location))
    model = AutoModelForCausalLM.from_pretrained(
        location,
        dtype=dtype,
        use_safetensors=True,
        attn_implementation=_ATTENTION[device.type],
        **_loading_options(source, revision),
    )
    return model.to(device).eval()


def load_saved(directory: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Return a model that a stage published."""
    return load_model("path", str(directory), "", dtype, device)


def load_saved_tokenizer(directory: Path) -> Any:
    """Return the tokenizer of a model that a stage published."""
    return load_tokenizer("path", str(directory), "")


def hide_library_bars() -> None:
    """Keep transformers' own progress bars (weights, shards) out of the caller's output."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _loading_options(source: Source, revision: str) -> dict[str, Any]:
    return {"trust_remote_code": False, "local_files_only": source == "path", "revision": revision or "main"}


def check_model_directory(directory: Path) -> None:
    """Raise UserError unless the directory holds a configuration, a tokenizer and every safetensors shard."""
    if not directory.is_dir():
        raise UserError(f"{directory}: no such model directory")
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise UserError(f"{directory}: {name} is missing; a model directory needs it")
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    if "auto_map" in config:
        raise UserError(f"{directory}/config.json: auto_map asks to run code from the model; that is never done")
    missing = [name for name in _shard_names(directory) if not (directory / name).is_file()]
    if missing:
        raise UserError(f"{directory}: weights are missing: {', '.join(missing)} (safetensors only)")


def _shard_names(directory: Path) -> list[str]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    return ["model.safetensors"]


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


def check_same_vocabulary(teacher_tokenizer: Any, student_tokenizer: Any) -> None:
    """Raise UserError naming the first difference unless both tokenizers map every token to one id."""
    teacher_ids, student_ids = teacher_tokenizer.get_vocab(), student_tokenizer.get_vocab()
    tokens = teacher_ids.keys() | student_ids.keys()
    for token in sorted(tokens, key=lambda token: (teacher_ids.get(token, len(tokens)), token)):
        if teacher_ids.get(token) != student_ids.get(token):
            raise UserError(
                f"teacher and student have different vocabularies: token {token!r} has id "
                f"{teacher_ids.get(token)} in the teacher and {student_ids.get(token)} in the student"
            )
    if teacher_tokenizer.eos_token_id != student_tokenizer.eos_token_id:
        raise UserError(
            f"teacher and student end responses differently: end token {teacher_tokenizer.eos_token_id} "
            f"and {student_tokenizer.eos_token_id}"
        )


def cut_head_to_tokenizer(model: Any, tokenizer: Any) -> None:
    """Cut an output head that was padded beyond the tokenizer, in place; a smaller head raises UserError."""
    num_tokens, num_rows = len(tokenizer), model.get_output_embeddings().weight.shape[0]
    if num_rows < num_tokens:
        raise UserError(f"the model has {num_rows} output rows, its tokenizer {num_tokens} tokens")
    if num_rows > num_tokens:
        model.resize_token_embeddings(num_tokens)
