"""From instruction text to token ids: the only place that knows templates and padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

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


def prompt_ids(tokenizer: Any, template: Template, instruction: str, context: str) -> list[int]:
    """Return the ids of one prompt; the template supplies every special token."""
    text = prompt_text(tokenizer, template, instruction, context)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def response_ids(tokenizer: Any, output: str) -> list[int]:
    """Return the ids of one response, ended by the end-of-sequence token."""
    return [*tokenizer(output, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def special_token_in(tokenizer: Any, text: str) -> str | None:
    """Return the first special token spelled out in `text`, which would be read as control, or None."""
    return next((token for token in tokenizer.all_special_tokens if token in text), None)


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, P) int64 and mask (B, P) bool with the padding on the left."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, mask


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return ids (B, T) int64 and mask (B, T) bool with the padding on the right."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([list(row) + [pad_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[True] * len(row) + [False] * (width - len(row)) for row in rows])
    return ids, mask
