"""Raw rows: every byte of a JSON Lines file belongs to one numbered record that is parsed or has a reason why not."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

# A longer row is quarantined unread: it is a broken file far more often than an instruction.
MAX_ROW_BYTES = 1 << 20
# Of a longer row this much is kept to recognise it by, beside its length and hash.
HEAD_BYTES = 4096
# Lists and objects within each other, the row itself included. Where Python's own parser and printers would give up
# depends on who calls them, and the same row must have the same fate everywhere.
MAX_DEPTH = 100
_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)
_DEPTH_STEPS = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_BOM = b"\xef\xbb\xbf"
_JSON_SPACE = " \t\r\n"


class RecordFault(Exception):
    """Why one row cannot be used: a short reason that can be counted, and a detail that names the value."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail


class RawText(NamedTuple):
    """The bytes of one row as they stand in the source.

    head: all of them, or the first HEAD_BYTES of a row longer than MAX_ROW_BYTES.
    num_bytes: full length. sha256: of the whole row, in hex, when only its head is kept; else empty.
    """

    head: bytes
    num_bytes: int
    sha256: str

    @property
    def is_whole(self) -> bool:
        """Return whether no byte was left out."""
        return self.num_bytes == len(self.head)


class RawRecord(NamedTuple):
    """One row of a source, before its columns are checked.

    file: name of the source. number: line (for CSV the first line of the row, for tables the row), from 1.
    fields: the parsed columns; None when `reason` says why there are none, with `detail` beside it.
    """

    file: str
    number: int
    text: RawText
    fields: dict[str, Any] | None
    reason: str | None
    detail: str

    @property
    def raw(self) -> bytes:
        """Return the bytes that are kept of the row."""
        return self.text.head


def read_jsonl(path: Path, file: str) -> Iterator[RawRecord]:
    """Yield one record per line; a line feed alone ends a line, so that U+2028 and the like stay text."""
    with path.open("rb") as stream:
        for number, text in enumerate(raw_lines(stream), start=1):
            yield json_record(file, number, text)


def raw_lines(stream: BinaryIO) -> Iterator[RawText]:
    """Yield the lines of a binary stream with their ends, holding at most MAX_ROW_BYTES of one at a time."""
    while line := stream.readline(MAX_ROW_BYTES + 1):
        yield whole_text(line) if len(line) <= MAX_ROW_BYTES else _long_line(line, stream)


def _long_line(line: bytes, stream: BinaryIO) -> RawText:
    head, num_bytes, digest = line[:HEAD_BYTES], len(line), hashlib.sha256(line)
    while not line.endswith(b"\n") and (line := stream.readline(MAX_ROW_BYTES)):
        num_bytes += len(line)
        digest.update(line)
    return RawText(head, num_bytes, digest.hexdigest())


def whole_text(raw: bytes) -> RawText:
    """Return the text of a row that is in memory, cut to its head when it is longer than MAX_ROW_BYTES."""
    if len(raw) <= MAX_ROW_BYTES:
        return RawText(raw, len(raw), "")
    return RawText(raw[:HEAD_BYTES], len(raw), hashlib.sha256(raw).hexdigest())


def json_record(file: str, number: int, text: RawText) -> RawRecord:
    """Return the record of one JSON object; what is wrong with it becomes its reason."""
    raw = text.head.removeprefix(_BOM) if number == 1 else text.head
    try:
        check_size(text)
        return RawRecord(file, number, text, parse_object(raw), None, "")
    except RecordFault as fault:
        return faulty_record(file, number, text, fault)


def fields_record(file: str, number: int, fields: dict[str, Any]) -> RawRecord:
    """Return the record of a row that came as values, not as text; its raw text is their JSON."""
    raw = json.dumps(fields, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass")
    text = whole_text(raw)
    try:
        check_size(text)
        _check_depth(raw)
        check_characters(fields)
        return RawRecord(file, number, text, fields, None, "")
    except RecordFault as fault:
        return faulty_record(file, number, text, fault)


def faulty_record(file: str, number: int, text: RawText, fault: RecordFault) -> RawRecord:
    """Return the record of a row that cannot be used."""
    return RawRecord(file, number, text, None, fault.reason, fault.detail)


def check_size(text: RawText) -> None:
    """Raise RecordFault when only the head of a row was kept."""
    if not text.is_whole:
        raise RecordFault("line too long", f"{text.num_bytes} bytes; at most {MAX_ROW_BYTES} are read")


def parse_object(raw: bytes) -> dict[str, Any]:
    """Return one JSON object; raises RecordFault for what is none.

    Stricter than `json`: no repeated keys, NaN, infinities, NUL or unpaired surrogates, at most MAX_DEPTH levels.
    """
    if not raw.strip():
        raise RecordFault("blank line")
    text = decoded(raw).rstrip(_JSON_SPACE)  # without the line end, a cut string ends where the text ends
    _check_depth(raw)
    value = _decoded_json(text)
    if not isinstance(value, dict):
        raise RecordFault("not an object", f"{type(value).__name__} instead")
    if b"\\u" in raw:  # what is not escaped has been decoded, and may be neither
        check_characters(value)
    return value


def _check_depth(raw: bytes) -> None:
    """Raise RecordFault for JSON, sound or not, that is nested deeper than MAX_DEPTH."""
    if raw.count(b"[") + raw.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for match in _BRACKET.finditer(raw):
        depth += _DEPTH_STEPS.get(raw[match.start()], 0)
        if depth > MAX_DEPTH:
            raise RecordFault("nested too deep", f"more than {MAX_DEPTH} levels")


def decoded(raw: bytes) -> str:
    """Return UTF-8 text without NUL; raises RecordFault naming the byte."""
    if b"\0" in raw:
        raise RecordFault("NUL byte", f"at byte {raw.index(0) + 1} of the line")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RecordFault("not UTF-8", f"at byte {error.start + 1} of the line") from None


def check_characters(fields: dict[str, Any]) -> None:
    """Raise RecordFault for a NUL or an unpaired surrogate in any text of a row, however deep."""
    values: list[Any] = [fields]
    while values:
        value = values.pop()
        if isinstance(value, str):
            _check_text(value)
        elif isinstance(value, dict):
            values += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            values += value


def _check_text(text: str) -> None:
    if "\0" in text:
        raise RecordFault("NUL byte", f"escaped, in {shown(text)}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordFault("unpaired surrogate", f"{text[error.start]!r} in {shown(text)}") from None


def shown(value: object) -> str:
    """Return a value as text for a report, on one line and shortened."""
    try:
        text = ascii(value)
    except (RecursionError, ValueError):  # nested too deep, or more digits than Python prints
        return f"{type(value).__name__} too large to show"
    return text if len(text) <= 80 else f"{text[:77]}..."


def _decoded_json(text: str) -> Any:
    try:
        value, end = _DECODER.raw_decode(text, len(text) - len(text.lstrip(_JSON_SPACE)))
        if end < len(text):
            raise json.JSONDecodeError("Extra data", text, len(text) - len(text[end:].lstrip(_JSON_SPACE)))
    except json.JSONDecodeError as error:
        is_cut = error.pos >= len(text) or error.msg.startswith("Unterminated string")
        detail = f"{error.msg.removesuffix(' at')} at character {error.pos + 1}"
        raise RecordFault("truncated JSON" if is_cut else "not JSON", detail) from None
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise RecordFault("duplicate key", shown(next(name for name in names if names.count(name) > 1)))
    return fields


def _refuse_constant(text: str) -> float:
    raise RecordFault("NaN or infinity", text)


def _finite_float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise RecordFault("NaN or infinity", shown(text))
    return value


def _bounded_int(text: str) -> int:
    try:
        return int(text)
    except ValueError:  # Python refuses to convert more than 4300 digits
        raise RecordFault("integer too long", f"{len(text)} digits") from None


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_keys, parse_constant=_refuse_constant, parse_float=_finite_float, parse_int=_bounded_int
)
