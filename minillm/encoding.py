"""Token ids of checked rows, and the faults that only a tokenizer can see."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pyarrow as pa

from minillm.errors import UserError
from minillm.prompts import Template, prompt_text, response_ids, special_token_pattern, text_ids
from minillm.records import RecordFault
from minillm.splits import too_long
from minillm.spool import Spool

# One row per row of ROW_SCHEMA; a row with a reason, here or there, has no ids.
TOKEN_SCHEMA = pa.schema(
    [
        ("token_reason", pa.string()),
        ("token_detail", pa.large_string()),
        ("num_prompt_tokens", pa.int32()),
        ("num_response_tokens", pa.int32()),
        ("prompt_ids", pa.large_list(pa.int32())),
        ("response_ids", pa.large_list(pa.int32())),
    ]
)


@dataclass(frozen=True)
class Encoder:
    """How rows become ids: a tokenizer, the template of prompts, and their limit."""

    tokenizer: Any
    template: Template
    max_prompt_tokens: int

    @cached_property
    def special_token(self) -> re.Pattern[str]:
        """Return what finds a special token in a text."""
        return special_token_pattern(self.tokenizer)


def check_template(tokenizer: Any, template: Template) -> None:
    """Raise UserError when prompts need a chat template that the tokenizer lacks, or one of another kind."""
    if template == "alpaca":
        return
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"data.template: {template!r} needs a chat template; the teacher's has none: use 'alpaca'")
    try:
        prompt_text(tokenizer, template, "instruction", "input")
    except Exception as error:  # of the template's own words, or of its language
        other = "'alpaca'" if template == "chat" else "'chat' or 'alpaca'"
        words = f"the teacher's chat template says: {error}; use {other}"
        raise UserError(f"data.template: {template!r}: {words}") from None


def encoded_rows(rows: Spool, encoder: Encoder) -> Iterator[pa.RecordBatch]:
    """Yield a batch of TOKEN_SCHEMA for each batch of ROW_SCHEMA."""
    for batch in rows.batches(["reason", "instruction", "input", "references"]):
        yield encoded_batch(batch.to_pylist(), encoder)


def encoded_batch(rows: Sequence[Mapping[str, Any]], encoder: Encoder) -> pa.RecordBatch:
    """Return the ids and the new faults of rows, encoded together."""
    good = [number for number, row in enumerate(rows) if row["reason"] is None]
    tokens = zip(good, _encoded([rows[number] for number in good], encoder), strict=True)
    columns: list[dict[str, Any]] = [{}] * len(rows)
    for number, row in tokens:
        columns[number] = row
    return pa.RecordBatch.from_pylist(columns, schema=TOKEN_SCHEMA)


def _encoded(rows: Sequence[Mapping[str, Any]], encoder: Encoder) -> list[dict[str, Any]]:
    prompts = _prompts(rows, encoder)
    responses = response_ids(encoder.tokenizer, [row["references"][0] for row in rows])
    encoded = []
    for row, prompt, response in zip(rows, prompts, responses, strict=True):
        fault = _fault([row["instruction"], row["input"], *row["references"]], len(prompt), encoder)
        encoded.append(
            {
                "num_prompt_tokens": len(prompt),
                "num_response_tokens": len(response),
                "prompt_ids": prompt,
                "response_ids": response,
            }
            if fault is None
            else {"token_reason": fault.reason, "token_detail": fault.detail}
        )
    return encoded


def _prompts(rows: Sequence[Mapping[str, Any]], encoder: Encoder) -> list[list[int]]:
    """Return the ids of each prompt; a document of the corpus has none."""
    places = [number for number, row in enumerate(rows) if row["instruction"]]
    texts = [
        prompt_text(encoder.tokenizer, encoder.template, rows[number]["instruction"], rows[number]["input"])
        for number in places
    ]
    prompts: list[list[int]] = [[] for _ in rows]
    for number, ids in zip(places, text_ids(encoder.tokenizer, texts), strict=True):
        prompts[number] = ids
    return prompts


def _fault(texts: Sequence[str], num_prompt_tokens: int, encoder: Encoder) -> RecordFault | None:
    found = next(filter(None, map(encoder.special_token.search, texts)), None)
    if found is not None:
        return RecordFault("special token in text", found.group())
    if num_prompt_tokens > encoder.max_prompt_tokens:
        return too_long("prompt", num_prompt_tokens, encoder.max_prompt_tokens)
    return None
