"""A tiny model with a tokenizer of words, saved as a stage publishes it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minillm.models import save_model
from tests import tiny


def word_tokenizer(words: list[str], end: str = "<end>") -> Any:
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[-1]))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token=end, pad_token=end)


WORDS = ["<end>", *(f"w{index}" for index in range(tiny.NUM_TOKENS - 1))]


def save_tiny(directory: Path, words: list[str] = WORDS, end: str = "<end>") -> Path:
    """Write the model and return its directory."""
    save_model(tiny.tiny_llama(1), word_tokenizer(words, end), directory)
    return directory
