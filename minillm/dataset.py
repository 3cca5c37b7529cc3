"""Prepared rows: the parquet layout that `prepare` writes and every other stage reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from minillm.errors import UserError

EXAMPLE_SCHEMA = pa.schema(
    [
        ("row_id", pa.int64()),
        ("instruction", pa.string()),
        ("input", pa.string()),
        ("references", pa.list_(pa.string())),
        ("category", pa.string()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("response_ids", pa.list_(pa.int32())),
    ]
)
ANSWERS_SCHEMA = pa.schema([("row_id", pa.int64()), ("output", pa.string())])
CORPUS_SCHEMA = pa.schema([("token_ids", pa.list_(pa.int32()))])


@dataclass(frozen=True)
class Example:
    """One accepted row.

    row_id: number of the row within its file, from 0; keys the row's random draws.
    references: acceptable answers, at least one; `response_ids` encodes the first, ended by the end token.
    """

    row_id: int
    instruction: str
    input: str
    references: list[str]
    category: str
    prompt_ids: list[int]
    response_ids: list[int]


@dataclass(frozen=True)
class Answer:
    """A black-box teacher's response text; `is_cut` when its author was stopped by a limit before the end."""

    text: str
    is_cut: bool


def read_examples(path: Path, num_rows: int = 0) -> list[Example]:
    """Return the rows of a prepared file in order, the first `num_rows` of them when it is not 0."""
    table = _read_table(path, EXAMPLE_SCHEMA)
    rows: list[dict[str, Any]] = (table.slice(0, num_rows) if num_rows else table).to_pylist()
    return [Example(**row) for row in rows]


def read_corpus(path: Path) -> list[list[int]]:
    """Return the packed blocks of the plain-text corpus, all of one length."""
    blocks: list[list[int]] = _read_table(path, CORPUS_SCHEMA)["token_ids"].to_pylist()
    return blocks


def read_prepared_answers(path: Path) -> dict[int, Answer]:
    """Return a black-box teacher's answers by the training row's `row_id`."""
    if not path.is_file():
        raise UserError(f"{path}: not there; name data.answers_file and run `dvc repro`")
    table = _read_table(path, ANSWERS_SCHEMA)
    texts = [Answer(text, is_cut=False) for text in table["output"].to_pylist()]
    return dict(zip(table["row_id"].to_pylist(), texts, strict=True))


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.read_table(path, schema=schema)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"{path}: not what `prepare` wrote ({reason}); remove it and run `dvc repro`") from None


def longest_text(rows: Sequence[Example], max_response_tokens: int = 0) -> int:
    """Return the largest number of tokens of prompt and response, of responses of at least the given length."""
    return max(len(row.prompt_ids) + max(len(row.response_ids), max_response_tokens) for row in rows)
