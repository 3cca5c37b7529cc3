"""Every byte of a JSON Lines file belongs to one numbered record with fields or with a reason."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tracemalloc
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.records import (
    HEAD_BYTES,
    MAX_DEPTH,
    MAX_ROW_BYTES,
    RawRecord,
    fields_record,
    json_record,
    raw_lines,
    read_jsonl,
    shown,
    whole_text,
)

GOOD = b'{"instruction": "Say hi.", "output": "Hi."}'


def read(tmp_path: Path, content: bytes) -> list[RawRecord]:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    return list(read_jsonl(path, "rows.jsonl"))


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b"", "blank line", ""),
        (b" \t", "blank line", ""),
        (b'{"a": "\xff"}', "not UTF-8", "at byte 8 of the line"),
        (b'{"a": "\x00"}', "NUL byte", "at byte 8 of the line"),
        (b'{"a": "\\u0000"}', "NUL byte", "escaped, in '\\x00'"),
        (b'{"a": "x', "truncated JSON", "Unterminated string starting at character 7"),
        (b'{"a": ', "truncated JSON", "Expecting value at character 6"),
        (b'{"a": 1', "truncated JSON", "Expecting ',' delimiter at character 8"),
        (b'{"a": 1} {"b": 2}', "not JSON", "Extra data at character 10"),
        (b"{'a': 1}", "not JSON", "Expecting property name enclosed in double quotes at character 2"),
        (b"\xef\xbb\xbf" + GOOD, "not JSON", "Expecting value at character 1"),
        (b"[1, 2]", "not an object", "list instead"),
        (b"null", "not an object", "NoneType instead"),
        (b'"text"', "not an object", "str instead"),
        (b"3", "not an object", "int instead"),
        (b'{"a": 1, "a": 2}', "duplicate key", "'a'"),
        (b'{"x": {"b": 1, "b": 2}}', "duplicate key", "'b'"),
        (b'{"a": NaN}', "NaN or infinity", "NaN"),
        (b'{"a": -Infinity}', "NaN or infinity", "-Infinity"),
        (b'{"a": 1e999}', "NaN or infinity", "'1e999'"),
        (b'{"a": "\\ud800"}', "unpaired surrogate", "'\\ud800' in '\\ud800'"),
        (b'{"\\udfff": [{"b": 1}]}', "unpaired surrogate", "'\\udfff' in '\\udfff'"),
        (b'{"a": [["\\ud800"]]}', "unpaired surrogate", "'\\ud800' in '\\ud800'"),
        (b'{"a": ' + b"9" * 5000 + b"}", "integer too long", "5000 digits"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deep", "more than 100 levels"),
    ],
)
def test_a_bad_line_is_kept_with_its_reason_and_its_neighbours_stay_good(
    tmp_path: Path, line: bytes, reason: str, detail: str
) -> None:
    before, bad, after = read(tmp_path, GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
    assert (bad.number, bad.raw, bad.fields, bad.reason, bad.detail) == (2, line + b"\n", None, reason, detail)
    assert before.fields == after.fields == {"instruction": "Say hi.", "output": "Hi."}
    assert (before.number, after.number) == (1, 3)


def test_a_byte_order_mark_is_taken_off_the_first_line_only_and_stays_in_its_raw_bytes(tmp_path: Path) -> None:
    (record,) = read(tmp_path, b"\xef\xbb\xbf" + GOOD)
    assert record.fields == {"instruction": "Say hi.", "output": "Hi."}
    assert record.raw == b"\xef\xbb\xbf" + GOOD


def test_carriage_returns_before_line_feeds_are_no_part_of_the_text(tmp_path: Path) -> None:
    records = read(tmp_path, b'{"a": "x"}\r\n{"a": "y"}\r\n')
    assert [record.fields for record in records] == [{"a": "x"}, {"a": "y"}]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    (record,) = read(tmp_path, '{"a": "x\u2028y\u0085z"}\n'.encode())
    assert record.fields == {"a": "x\u2028y\u0085z"}


@pytest.mark.parametrize(
    ("content", "numbers"), [(b"", []), (GOOD, [1]), (GOOD + b"\n", [1]), (GOOD + b"\n\n", [1, 2])]
)
def test_only_the_empty_end_of_a_file_is_no_line(tmp_path: Path, content: bytes, numbers: list[int]) -> None:
    assert [record.number for record in read(tmp_path, content)] == numbers


def test_a_line_of_ten_megabytes_is_hashed_and_passed_over_without_being_held(tmp_path: Path) -> None:
    line = b'{"instruction": "' + b"x" * 10_000_000 + b'"}\n'
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD + b"\n" + line + GOOD)
    del line
    tracemalloc.start()
    records = list(read_jsonl(path, "rows.jsonl"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    long = records[1]
    assert [record.reason for record in records] == [None, "line too long", None]
    assert long.detail == f"10000020 bytes; at most {MAX_ROW_BYTES} are read"
    assert (len(long.raw), long.text.num_bytes) == (HEAD_BYTES, 10_000_020)
    expected = b'{"instruction": "' + b"x" * 10_000_000 + b'"}\n'
    assert long.text.sha256 == hashlib.sha256(expected).hexdigest()
    assert peak < 5 * MAX_ROW_BYTES


@pytest.mark.parametrize(("extra", "reason"), [(0, None), (1, "line too long")])
def test_the_longest_line_that_is_read_has_exactly_the_limit(tmp_path: Path, extra: int, reason: str | None) -> None:
    line = b'{"a": "' + b"x" * (MAX_ROW_BYTES - 10 + extra) + b'"}\n'
    assert len(line) == MAX_ROW_BYTES + extra
    assert [record.reason for record in read(tmp_path, line)] == [reason]


@given(st.binary(max_size=200) | st.text('ab\n\r\x00{}"', max_size=200).map(str.encode))
def test_the_raw_lines_joined_are_the_input(content: bytes) -> None:
    lines = list(raw_lines(io.BytesIO(content)))
    assert b"".join(line.head for line in lines) == content
    assert len(lines) == content.count(b"\n") + (not content.endswith(b"\n") and content != b"")


@given(st.lists(st.binary(max_size=12), max_size=8).map(b"\n".join))
def test_of_lines_over_the_limit_head_length_and_hash_are_those_of_the_input(content: bytes) -> None:
    with mock.patch.multiple("minillm.records", MAX_ROW_BYTES=5, HEAD_BYTES=3):
        texts = list(raw_lines(io.BytesIO(content)))
    for text, line in zip(texts, io.BytesIO(content), strict=True):
        expected = (line, len(line), "") if len(line) <= 5 else (line[:3], len(line), hashlib.sha256(line).hexdigest())
        assert text == expected


TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda parts: st.lists(parts, max_size=4) | st.dictionaries(TEXTS, parts, max_size=4),
)


@given(st.dictionaries(TEXTS, VALUES, max_size=4), st.booleans(), st.sampled_from(["", "\n", " \r\n"]))
def test_every_object_of_valid_text_is_read_as_it_was_written(
    fields: dict[str, Any], ensure_ascii: bool, end: str
) -> None:
    raw = (json.dumps(fields, ensure_ascii=ensure_ascii) + end).encode()
    record = json_record("rows.jsonl", 1, whole_text(raw))
    assert (record.fields, record.reason, record.raw) == (fields, None, raw)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"[": ', "}")])
@pytest.mark.parametrize(("depth", "reason"), [(MAX_DEPTH, None), (MAX_DEPTH + 1, "nested too deep")])
def test_fault_19_the_depth_that_is_read_is_fixed(opening: str, closing: str, depth: int, reason: str | None) -> None:
    raw = '{"{[": ' + opening * (depth - 1) + '"' + "[" * 500 + '\\""' + closing * (depth - 1) + "}"
    record = json_record("rows.jsonl", 1, whole_text(raw.encode()))
    assert record.reason == reason
    assert record.fields is None or json.loads(raw) == record.fields


def test_fault_19_brackets_side_by_side_are_not_depth() -> None:
    record = json_record("rows.jsonl", 1, whole_text(b'{"a": [' + b"[], " * 1000 + b"{}]}"))
    assert record.reason is None


def test_a_value_that_python_cannot_print_is_shown_as_its_type() -> None:
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert (shown(deep), shown(10**5000)) == ("list too large to show", "int too large to show")
    assert shown("line\nfeed") == "'line\\nfeed'"


def test_a_thousand_broken_lines_are_all_accounted_for_in_order(tmp_path: Path) -> None:
    draws = random.Random(7)
    lines = [broken_line(draws, number) for number in range(1000)]
    records = read(tmp_path, b"".join(line + b"\n" for line in lines))
    assert [record.number for record in records] == list(range(1, 1001))
    assert [record.raw for record in records] == [line + b"\n" for line in lines]
    assert all((record.fields is None) == (record.reason is not None) for record in records)
    assert sum(record.reason is not None for record in records) > 500


def broken_line(draws: random.Random, number: int) -> bytes:
    """Return a valid row after one to three random injuries, none of which adds a line feed."""
    line = bytearray(json.dumps({"instruction": f"Task {number}", "output": "é\u2028 \\ud83d"}).encode())
    junk = [b"\xff", b"\x00", b'"', b"}", b"\\", b"\\ud800", b"NaN", b"1e999", b"\xef\xbb\xbf", b"[" * 2000, b"\r"]
    for _ in range(draws.randint(1, 3)):
        place = draws.randrange(len(line) + 1)
        if draws.random() < 0.5:
            del line[place : place + draws.randint(1, 30)]
        else:
            line[place:place] = draws.choice(junk)
    return bytes(line)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"a": "x\0"}, "NUL byte"),
        ({"a": ["\ud800"]}, "unpaired surrogate"),
        ({"a": "x" * MAX_ROW_BYTES}, "line too long"),
    ],
)
def test_a_row_that_came_as_values_meets_the_same_rules(fields: dict[str, Any], reason: str) -> None:
    record = fields_record("table", 5, fields)
    assert (record.file, record.number, record.fields, record.reason) == ("table", 5, None, reason)


def test_a_row_that_came_as_values_has_its_json_as_raw_text() -> None:
    record = fields_record("table", 1, {"a": "é", "b": [1, None]})
    assert record.raw.decode() == '{"a": "é", "b": [1, null]}'
    assert whole_text(record.raw).is_whole
