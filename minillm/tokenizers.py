"""Load and compare tokenizers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from minillm.embedded import load_embedded_tokenizer
from minillm.errors import UserError
from minillm.model_directory import Source, check_location

# Two tokenizers can have one vocabulary and still cut texts differently.
_PROBES = ("In 1984, 31 of 250.", "The quick brown fox; naïve café, 東京 and 🙂!", "def f(x):\n\treturn  x ** 2\n")


def load_tokenizer(source: Source, location: str, revision: str) -> Any:
    """Return the tokenizer of a model, with an end token and a padding token (the end token if it has none)."""
    if source == "embedded":
        return load_embedded_tokenizer()
    from transformers import AutoTokenizer

    check_location(source, location)
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


def check_same_vocabulary(teacher_tokenizer: Any, student_tokenizer: Any) -> None:
    """Raise UserError naming the first difference unless both map every token to one id and cut probe texts alike."""
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
    for text in _PROBES:
        teacher_cut, student_cut = (_ids(tokenizer, text) for tokenizer in (teacher_tokenizer, student_tokenizer))
        if teacher_cut != student_cut:
            raise UserError(
                f"teacher and student cut {text!r} into different tokens ({len(teacher_cut)} and {len(student_cut)}); "
                "the student would be trained on texts as it never sees them"
            )


def _ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
