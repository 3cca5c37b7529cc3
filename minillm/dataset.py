"""Prepared rows: the parquet layout that `prepare` writes and every other stage reads."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

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


def read_examples(path: Path, num_rows: int = 0) -> list[Example]:
    """Return the rows of a prepared file in order, the first `num_rows` of them when it is not 0."""
    table = pq.read_table(path, schema=EXAMPLE_SCHEMA)
    rows: list[dict[str, Any]] = (table.slice(0, num_rows) if num_rows else table).to_pylist()
    return [Example(**row) for row in rows]


def read_corpus(path: Path) -> list[list[int]]:
    """Return the packed blocks of the plain-text corpus, all of one length."""
    blocks: list[list[int]] = pq.read_table(path, schema=CORPUS_SCHEMA)["token_ids"].to_pylist()
    return blocks
