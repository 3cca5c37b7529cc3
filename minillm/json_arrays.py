"""Rows of a .json file: the elements of one top-level array, split without loading or trusting the whole."""

from __future__ import annotations

import hashlib
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

from minillm.errors import UserError
from minillm.records import (
    HEAD_BYTES,
    MAX_ROW_BYTES,
    RawRecord,
    RawText,
    RecordFault,
    check_size,
    faulty_record,
    json_record,
    whole_text,
)

# Possessive and with an optional end, so that no string, closed or not, is scanned twice.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{},]', re.DOTALL)
_START = re.compile(rb"(?:\xef\xbb\xbf)?[ \t\r\n]*\[")
_NOT_SPACE = re.compile(rb"[^ \t\r\n]")
_NOT_CLOSED = RecordFault("truncated JSON", "the array is not closed")
_AFTER_END = RecordFault("text after the array")
_EMPTY = RecordFault("not JSON", "an empty element of the array")


def read_json(path: Path, file: str) -> Iterator[RawRecord]:
    """Yield one record per element of the array; text behind the array is a record that cannot be used."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for number, (start, end, fault) in enumerate(_elements(content, file), start=1):
            yield _record(file, number, _text(content, start, end), fault)


def _record(file: str, number: int, text: RawText, fault: RecordFault | None) -> RawRecord:
    if fault is None:
        return json_record(file, number, text)
    try:
        check_size(text)
    except RecordFault as size_fault:
        fault = size_fault
    return faulty_record(file, number, text, fault)


def _elements(content: mmap.mmap, file: str) -> Iterator[tuple[int, int, RecordFault | None]]:
    """Yield start, end and fault of each element, and of what stands after the array."""
    start = _array_start(content, file)
    depth, num_elements = 1, 0
    for match in _TOKEN.finditer(content, start):
        token = content[match.start()]
        if token in b"[{":
            depth += 1
        elif token in b"]}" and depth > 1:
            depth -= 1
        elif token in b",]" and depth == 1:
            is_blank = not _NOT_SPACE.search(content, start, match.start())
            if not (is_blank and token in b"]" and num_elements == 0):
                yield start, match.start(), _EMPTY if is_blank else None
            start, num_elements = match.end(), num_elements + 1
            if token in b"]":
                break
    else:
        yield start, len(content), _NOT_CLOSED
        return
    if _NOT_SPACE.search(content, start):
        yield start, len(content), _AFTER_END


def _array_start(content: mmap.mmap, file: str) -> int:
    match = _START.match(content)
    if match is None:
        raise UserError(f"{file}: a .json file holds one array of objects; with one object a line, name it .jsonl")
    return match.end()


def _text(content: mmap.mmap, start: int, end: int) -> RawText:
    if end - start <= MAX_ROW_BYTES:
        return whole_text(content[start:end])
    digest = hashlib.sha256()
    for position in range(start, end, MAX_ROW_BYTES):
        digest.update(content[position : min(position + MAX_ROW_BYTES, end)])
    return RawText(content[start : start + HEAD_BYTES], end - start, digest.hexdigest())
