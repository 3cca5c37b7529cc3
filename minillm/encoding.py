"""Token ids of checked rows, and the faults that only a tokenizer can see."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from minillm.errors import UserError
from minillm.prompts import Template, prompt_ids, response_ids, special_token_in
from minillm.records import RecordFault
from minillm.splits import answer_key, prompt_key, too_long
from minillm.spool import table_rows

# One row per row of ROW_SCHEMA; a row with a reason, here or there, has no keys and no ids.
TOKEN_SCHEMA = pa.schema(
    [
        ("token_reason", pa.string()),
        ("token_detail", pa.large_string()),
        ("prompt_key", pa.binary()),
        ("answer_key", pa.binary()),
        ("prompt_ids", pa.large_list(pa.int32())),
        ("response_ids", pa.large_list(pa.int32())),
    ]
)


@dataclass(frozen=True)
class Encoder:
    """How rows become ids: a tokenizer, the template of prompts, their limit, and the salt of their hash."""

    tokenizer: Any
    template: Template
    max_prompt_tokens: int
    seed: int


def check_template(tokenizer: Any, template: Template) -> None:
    """Raise UserError when prompts need a chat template that the tokenizer lacks."""
    if template != "alpaca" and not getattr(tokenizer, "chat_template", None):
        raise UserError(f"data.template: {template!r} needs a chat template; the teacher's has none: use 'alpaca'")


def encoded_rows(rows: pa.Table, encoder: Encoder) -> Iterator[dict[str, Any]]:
    """Yield one row of TOKEN_SCHEMA for each row of ROW_SCHEMA."""
    for row in table_rows(rows.select(["reason", "instruction", "input", "references"])):
        yield {} if row["reason"] is not None else _encoded(row, encoder)


def _encoded(row: Mapping[str, Any], encoder: Encoder) -> dict[str, Any]:
    instruction, context, references = row["instruction"], row["input"], row["references"]
    try:
        _check_special_tokens(encoder.tokenizer, [instruction, context, *references])
        prompt = _prompt(instruction, context, encoder)
    except RecordFault as fault:
        return {"token_reason": fault.reason, "token_detail": fault.detail}
    key = prompt_key(encoder.seed, instruction, context)
    return {
        "prompt_key": key,
        "answer_key": answer_key(key, references[0]),
        "prompt_ids": prompt,
        "response_ids": response_ids(encoder.tokenizer, references[0]),
    }


def _check_special_tokens(tokenizer: Any, texts: Sequence[str]) -> None:
    for text in texts:
        token = special_token_in(tokenizer, text)
        if token is not None:
            raise RecordFault("special token in text", token)


def _prompt(instruction: str, context: str, encoder: Encoder) -> list[int]:
    """Return the ids of a prompt within its limit; a document of the corpus has none."""
    if not instruction:
        return []
    ids = prompt_ids(encoder.tokenizer, encoder.template, instruction, context)
    fault = too_long("prompt", len(ids), encoder.max_prompt_tokens)
    if fault is not None:
        raise fault
    return ids
