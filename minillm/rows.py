"""Checked rows: from the records of every source to batches of columns in input order, good and bad side by side."""

from __future__ import annotations

import gc
import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa

from minillm.errors import UserError
from minillm.records import HEAD_BYTES, RawRecord, RawText, RecordFault
from minillm.row_keys import KEY_BYTES, answer_key, prompt_key
from minillm.sources import Source

_CHUNK_ROWS = 10_000
_CHUNK_BYTES = 16 << 20
_ABSENT_INPUT = ("input", "input")  # may be absent under its own name; a name given in the params must be there

# One row per record. source: index of the source. raw: the first HEAD_BYTES of num_bytes; sha256 of all when cut.
# reason, detail: why the row is quarantined; null for a good one, which has the keys and the text columns instead.
ROW_SCHEMA = pa.schema(
    [
        ("source", pa.int32()),
        ("number", pa.int64()),
        ("raw", pa.large_binary()),
        ("num_bytes", pa.int64()),
        ("sha256", pa.large_string()),
        ("reason", pa.string()),
        ("detail", pa.large_string()),
        ("prompt_key", pa.binary(KEY_BYTES)),
        ("answer_key", pa.binary(KEY_BYTES)),
        ("instruction", pa.large_string()),
        ("input", pa.large_string()),
        ("references", pa.large_list(pa.large_string())),
        ("category", pa.large_string()),
    ]
)


class Row(NamedTuple):
    """A row that passed the checks; a document of the corpus is the one reference of an empty instruction."""

    instruction: str
    input: str
    references: list[str]
    category: str


RowCheck = Callable[[Source, Sequence[RawRecord]], list[Row | RecordFault]]


def checked_rows(sources: Sequence[Source], check: RowCheck, seed: int) -> Iterator[pa.RecordBatch]:
    """Yield batches of ROW_SCHEMA; `seed` salts the keys.

    Raises UserError for a source without rows or without a needed column.
    """
    for index, source in enumerate(sources):
        yield from _without_collection(_source_batches(index, source, check, seed))


def _without_collection(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the batches, each made with Python's collector of cycles off.

    It would walk the rows of a chunk again and again, a quarter of the time, and they make no cycles. What else made
    some is collected between batches.
    """
    while True:
        with _collector_off():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


@contextmanager
def _collector_off() -> Iterator[None]:
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _source_batches(index: int, source: Source, check: RowCheck, seed: int) -> Iterator[pa.RecordBatch]:
    num_rows, columns = 0, set[str]()
    for records in _chunks(source.read()):
        num_rows += len(records)
        columns.update(*(record.fields for record in records if record.fields))
        yield _checked_batch(index, records, _outcomes(source, records, check), seed)
    _check_complete(source, num_rows, columns)


def _chunks(records: Iterable[RawRecord]) -> Iterator[list[RawRecord]]:
    """Yield records in lists bounded in rows and in bytes."""
    chunk: list[RawRecord] = []
    num_bytes = 0
    for record in records:
        chunk.append(record)
        num_bytes += len(record.text.head)
        if len(chunk) == _CHUNK_ROWS or num_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def _outcomes(source: Source, records: Sequence[RawRecord], check: RowCheck) -> list[Row | RecordFault]:
    checked = iter(check(source, [record for record in records if record.fields is not None]))
    return [
        next(checked) if record.fields is not None else RecordFault(record.reason or "", record.detail)
        for record in records
    ]


def _checked_batch(
    index: int, records: Sequence[RawRecord], outcomes: Sequence[Row | RecordFault], seed: int
) -> pa.RecordBatch:
    rows = [outcome if isinstance(outcome, Row) else None for outcome in outcomes]
    faults = [outcome if isinstance(outcome, RecordFault) else None for outcome in outcomes]
    columns = {
        "source": [index] * len(records),
        "number": [record.number for record in records],
        **_kept_texts([record.text for record in records]),
        "reason": [fault and fault.reason for fault in faults],
        "detail": [fault and fault.detail for fault in faults],
        **_keys(rows, seed),
        **{name: [row and getattr(row, name) for row in rows] for name in Row._fields},
    }
    return pa.RecordBatch.from_pydict(columns, schema=ROW_SCHEMA)


def _keys(rows: Sequence[Row | None], seed: int) -> dict[str, list[bytes | None]]:
    prompt_keys = [row and prompt_key(seed, row.instruction, row.input) for row in rows]
    pairs = zip(rows, prompt_keys, strict=True)
    answer_keys = [answer_key(key, row.references[0]) if row and key else None for row, key in pairs]
    return {"prompt_key": prompt_keys, "answer_key": answer_keys}


def _kept_texts(texts: Sequence[RawText]) -> dict[str, list[Any]]:
    return {
        "raw": [text.head[:HEAD_BYTES] for text in texts],
        "num_bytes": [text.num_bytes for text in texts],
        "sha256": [_digest(text) for text in texts],
    }


def _digest(text: RawText) -> str:
    is_cut = len(text.head) > HEAD_BYTES and text.is_whole
    return hashlib.sha256(text.head).hexdigest() if is_cut else text.sha256


def _check_complete(source: Source, num_rows: int, columns: set[str]) -> None:
    if num_rows == 0:
        raise UserError(f"{source.file}: the file has no rows")
    for name, column in source.columns.items():
        if columns and column not in columns and (name, column) != _ABSENT_INPUT:
            present = ", ".join(repr(present) for present in sorted(columns))
            raise UserError(f"{source.file}: no row has the column {column!r} ({name}); it has: {present:.500}")
