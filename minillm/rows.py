"""Checked rows: from the records of every source to one temporary table in input order, good and bad side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from minillm.errors import UserError
from minillm.records import HEAD_BYTES, RawRecord, RawText, RecordFault
from minillm.sources import Source

_CHUNK_ROWS = 20_000
_CHUNK_BYTES = 64 << 20
_ABSENT_INPUT = ("input", "input")  # may be absent under its own name; a name given in the params must be there

# One row per record. source: index of the source. raw: the first HEAD_BYTES of num_bytes; sha256 of all when cut.
# reason, detail: why the row is quarantined; null for a good one, which has the text columns instead.
ROW_SCHEMA = pa.schema(
    [
        ("source", pa.int32()),
        ("number", pa.int64()),
        ("raw", pa.large_binary()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.large_string()),
        ("reason", pa.string()),
        ("detail", pa.large_string()),
        ("instruction", pa.large_string()),
        ("input", pa.large_string()),
        ("references", pa.large_list(pa.large_string())),
        ("category", pa.large_string()),
    ]
)


@dataclass(frozen=True)
class Row:
    """A row that passed the checks; a document of the corpus is the one reference of an empty instruction."""

    instruction: str
    input: str
    references: list[str]
    category: str


RowCheck = Callable[[Source, Sequence[RawRecord]], list[Row | RecordFault]]


def checked_rows(sources: Sequence[Source], check: RowCheck) -> Iterator[list[dict[str, Any]]]:
    """Yield chunks of rows of ROW_SCHEMA; raises UserError for a source without rows or without a needed column."""
    for index, source in enumerate(sources):
        num_rows, columns = 0, set[str]()
        for records in _chunks(source.read()):
            num_rows += len(records)
            columns.update(*(record.fields for record in records if record.fields))
            yield _checked_chunk(index, source, records, check)
        _check_complete(source, num_rows, columns)


def _chunks(records: Iterable[RawRecord]) -> Iterator[list[RawRecord]]:
    """Yield records in lists bounded in rows and in bytes."""
    chunk: list[RawRecord] = []
    num_bytes = 0
    for record in records:
        chunk.append(record)
        num_bytes += len(record.raw)
        if len(chunk) == _CHUNK_ROWS or num_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _checked_chunk(index: int, source: Source, records: Sequence[RawRecord], check: RowCheck) -> list[dict[str, Any]]:
    checked = iter(check(source, [record for record in records if record.fields is not None]))
    return [_spool_row(index, record, next(checked) if record.fields is not None else None) for record in records]


def _spool_row(index: int, record: RawRecord, checked: Row | RecordFault | None) -> dict[str, Any]:
    row = {"source": index, "number": record.number, **_kept_text(record.text)}
    if isinstance(checked, Row):
        return row | vars(checked)
    if isinstance(checked, RecordFault):
        return row | {"reason": checked.reason, "detail": checked.detail}
    return row | {"reason": record.reason, "detail": record.detail}


def _kept_text(text: RawText) -> dict[str, Any]:
    is_cut = text.is_whole and text.num_bytes > HEAD_BYTES
    sha256 = hashlib.sha256(text.head).hexdigest() if is_cut else text.sha256
    return {"raw": text.head[:HEAD_BYTES], "num_bytes": text.num_bytes, "sha256": sha256}


def _check_complete(source: Source, num_rows: int, columns: set[str]) -> None:
    if num_rows == 0:
        raise UserError(f"{source.file}: the file has no rows")
    for name, column in source.columns.items():
        if columns and column not in columns and (name, column) != _ABSENT_INPUT:
            present = ", ".join(repr(present) for present in sorted(columns))
            raise UserError(f"{source.file}: no row has the column {column!r} ({name}); it has: {present:.500}")
