"""Rows of CSV and Parquet files, streamed, with the same records as JSON Lines."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from minillm.errors import UserError
from minillm.records import (
    HEAD_BYTES,
    MAX_ROW_BYTES,
    RawRecord,
    RawText,
    RecordFault,
    check_size,
    decoded,
    faulty_record,
    fields_record,
    raw_lines,
    whole_text,
)

_BATCH_ROWS = 1000
_BOM = "\ufeff"


def read_csv(path: Path, file: str) -> Iterator[RawRecord]:
    """Yield one record per row of a comma-separated file with a header; a quoted cell may span lines."""
    with path.open("rb") as stream:
        rows = _csv_rows(stream)
        number, text, cells = next(rows)
        header = _header(file, text, cells)
        for number, text, cells in rows:
            yield _csv_record(file, number, text, cells, header)


def _csv_rows(stream: BinaryIO) -> Iterator[tuple[int, RawText, list[str] | csv.Error]]:
    """Yield first line, text and cells of each row, or the error of a row that is not CSV."""
    lines: list[RawText] = []
    csv.field_size_limit(MAX_ROW_BYTES)  # Python's own limit is an eighth of what a row may have
    reader = csv.reader(_decoded_lines(stream, lines), strict=True)
    number, start = 1, 0
    while True:
        cells: list[str] | csv.Error | None
        try:
            cells = next(reader, None)
        except csv.Error as error:
            cells = error
        if not lines:
            return
        text = _joined(lines, stream, start)
        yield number, text, [] if cells is None else cells
        number, start = number + len(lines), start + text.num_bytes
        lines.clear()


def _decoded_lines(stream: BinaryIO, lines: list[RawText]) -> Iterator[str]:
    """Yield lines for the CSV reader while noting what it took; it gets an over-long line as an empty one."""
    for number, line in enumerate(raw_lines(stream)):
        lines.append(line)
        text = line.head.decode("utf-8", "surrogateescape") if line.is_whole else "\n"
        yield text if number else text.removeprefix(_BOM)


def _joined(lines: list[RawText], stream: BinaryIO, start: int) -> RawText:
    """Return the text of the row that ends where the stream stands; what was left out of it is read again."""
    if len(lines) == 1:
        return lines[0]
    head = b"".join(line.head for line in lines)
    if all(line.is_whole for line in lines):
        return whole_text(head)
    num_bytes = sum(line.num_bytes for line in lines)
    return RawText(head[:HEAD_BYTES], num_bytes, _sha256(stream, start, num_bytes))


def _sha256(stream: BinaryIO, start: int, num_bytes: int) -> str:
    """Return the hash of so many bytes from `start`, in hex, and leave the stream at their end."""
    digest, end = hashlib.sha256(), start + num_bytes
    for position in range(stream.seek(start), end, MAX_ROW_BYTES):
        digest.update(stream.read(min(MAX_ROW_BYTES, end - position)))
    return digest.hexdigest()


def _header(file: str, text: RawText, cells: list[str] | csv.Error) -> list[str]:
    """Return the column names of the first row; raises UserError when it cannot name columns."""
    try:
        check_size(text)
        decoded(text.head)
    except RecordFault as fault:
        reason = f"{fault.reason} ({fault.detail})"
        raise UserError(f"{file}: line 1: {reason}; a header of column names is needed") from None
    if isinstance(cells, csv.Error):
        raise UserError(f"{file}: line 1: {cells}; a header of column names is needed")
    repeated = sorted({name for name in cells if cells.count(name) > 1})
    if repeated or not all(cells) or not cells:
        raise UserError(f"{file}: line 1: a header of distinct column names is needed, got {cells!r:.200}")
    return cells


def _csv_record(file: str, number: int, text: RawText, cells: list[str] | csv.Error, header: list[str]) -> RawRecord:
    try:
        return RawRecord(file, number, text, _csv_fields(text, cells, header), None, "")
    except RecordFault as fault:
        return faulty_record(file, number, text, fault)


def _csv_fields(text: RawText, cells: list[str] | csv.Error, header: list[str]) -> dict[str, Any]:
    check_size(text)
    decoded(text.head)
    if isinstance(cells, csv.Error):
        raise RecordFault("not CSV", str(cells))
    if not text.head.strip():
        raise RecordFault("blank line")
    if len(cells) != len(header):
        raise RecordFault("wrong number of columns", f"{len(cells)}; the header has {len(header)}")
    return dict(zip(header, cells, strict=True))


def read_parquet(path: Path, file: str) -> Iterator[RawRecord]:
    """Yield one record per row of a Parquet file, batch by batch; raises UserError for a file that is damaged."""
    number = 0
    try:
        with pq.ParquetFile(path) as table:
            _check_names(file, table.schema_arrow.names)
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                yield from _batch_records(batch, file, number)
                number += batch.num_rows
            num_rows = table.metadata.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # names of columns are decoded when asked for
        reason = str(error).split("\n")[0]
        raise UserError(f"{file}: not a readable Parquet file after row {number}: {reason}") from None
    if number != num_rows:
        raise UserError(f"{file}: not a readable Parquet file: it has {number} rows, {num_rows} by its own count")


def _check_names(file: str, names: list[str]) -> None:
    """Raise UserError for a table of which a row would lose all but one of the columns with one name."""
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UserError(f"{file}: distinct column names are needed, these are repeated: {repeated!r:.200}")


def _batch_records(batch: pa.RecordBatch, file: str, number: int) -> Iterator[RawRecord]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError, LookupError):  # text that is not UTF-8, or a value that Python cannot hold
        for offset in range(batch.num_rows):
            yield _row_record(batch.slice(offset, 1), file, number + offset + 1)
        return
    for offset, fields in enumerate(rows, start=1):
        yield fields_record(file, number + offset, fields)


def _row_record(row: pa.RecordBatch, file: str, number: int) -> RawRecord:
    """Return the record of one row that may hold text that is not UTF-8, or a value that Python cannot hold."""
    try:
        return fields_record(file, number, row.to_pylist()[0])
    except (ValueError, OverflowError, LookupError) as error:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, row.schema) as writer:
            writer.write_batch(row)
        raw = whole_text(sink.getvalue().to_pybytes())
        return faulty_record(file, number, raw, _value_fault(error))


def _value_fault(error: Exception) -> RecordFault:
    if isinstance(error, UnicodeDecodeError):
        return RecordFault("not UTF-8", f"at byte {error.start + 1} of a value")
    return RecordFault("value out of range", str(error).split("\n")[0])
