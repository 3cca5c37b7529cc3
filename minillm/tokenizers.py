"""Load and compare tokenizers, and check model directories before anything is read from them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError

from minillm.embedded import load_embedded_tokenizer
from minillm.errors import UserError

Source = Literal["embedded", "path", "hub"]


def load_tokenizer(source: Source, location: str, revision: str) -> Any:
    """Return the tokenizer of a model, with an end token and a padding token (the end token if it has none)."""
    if source == "embedded":
        return load_embedded_tokenizer()
    from transformers import AutoTokenizer

    if source == "path":
        check_model_directory(Path(location))
    with explained(location, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(location, **loading_options(source, revision))
    if tokenizer.eos_token_id is None:
        raise UserError(f"{location}: the tokenizer has no end-of-sequence token; responses could not end")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_saved_tokenizer(directory: Path) -> Any:
    """Return the tokenizer of a model that a stage published."""
    return load_tokenizer("path", str(directory), "")


def loading_options(source: Source, revision: str) -> dict[str, Any]:
    """Return the keywords that every `from_pretrained` gets: no code from the model, no network for a path."""
    return {"trust_remote_code": False, "local_files_only": source == "path", "revision": revision or "main"}


@contextmanager
def explained(location: str, part: str) -> Iterator[None]:
    """Turn what a library raises over broken or absent files into one line that names the place."""
    try:
        yield
    except (SafetensorError, RuntimeError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{location}: the {part} cannot be loaded: {type(error).__name__}: {reason}") from error


def check_model_directory(directory: Path) -> None:
    """Raise UserError unless the directory holds a configuration, a tokenizer and every safetensors shard."""
    if not directory.is_dir():
        raise UserError(f"{directory}: no such model directory")
    for name in ("config.json", "tokenizer.json"):
        if not (directory / name).is_file():
            raise UserError(f"{directory}: {name} is missing; a model directory needs it")
    config = _read_object(directory / "config.json")
    if "auto_map" in config:
        raise UserError(f"{directory}/config.json: auto_map asks to run code from the model; that is never done")
    missing = [name for name in _shard_names(directory) if not (directory / name).is_file()]
    if missing:
        raise UserError(f"{directory}: weights are missing: {', '.join(missing)} (safetensors only)")


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: a JSON object is needed, got {type(content).__name__}")
    return content


def _shard_names(directory: Path) -> list[str]:
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        return sorted(set(_read_object(index).get("weight_map", {}).values()))
    return ["model.safetensors"]


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
