"""From instruction text to token ids: the only place that knows templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

Template = Literal["chat", "bare_chat", "alpaca"]
_ALPACA_HEAD = "Below is an instruction that describes a task. Write a response that completes the request.\n\n"


def prompt_text(tokenizer: Any, template: Template, instruction: str, context: str) -> str:
    """Return the prompt of one row; `context` is the row's input and may be empty."""
    if template in ("chat", "bare_chat"):
        system = [{"role": "system", "content": ""}] if template == "bare_chat" else []
        user = {"role": "user", "content": f"{instruction}\n\n{context}" if context else instruction}
        return str(tokenizer.apply_chat_template([*system, user], tokenize=False, add_generation_prompt=True))
    middle = f"### Input:\n{context}\n\n" if context else ""
    return f"{_ALPACA_HEAD}### Instruction:\n{instruction}\n\n{middle}### Response:\n"


def text_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text; special tokens are those that it spells out, as the template of a prompt does."""
    if not texts:
        return []
    ids: list[list[int]] = tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]
    return ids


def response_ids(tokenizer: Any, outputs: Sequence[str]) -> list[list[int]]:
    """Return the ids of each response, ended by the end-of-sequence token."""
    return [[*ids, tokenizer.eos_token_id] for ids in text_ids(tokenizer, outputs)]


def special_token_pattern(tokenizer: Any) -> re.Pattern[str]:
    """Return what finds a special token spelled out in a text, which would be read as control."""
    # The named ones (start, end, padding, ..) and all others that the tokenizer was given as special.
    added = {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}
    words = sorted({*tokenizer.all_special_tokens, *added} - {""}, key=lambda word: (-len(word), word))
    return re.compile("|".join(map(re.escape, words)) or "(?!)")
