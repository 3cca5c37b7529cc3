"""The elements of a JSON array are rows, each good or bad on its own."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minillm.errors import UserError
from minillm.json_arrays import read_json
from minillm.records import MAX_ROW_BYTES, RawRecord


def read(tmp_path: Path, content: bytes) -> list[RawRecord]:
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    return list(read_json(path, "rows.json"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"[]", []),
        (b" [ ] \n", []),
        (b'\xef\xbb\xbf[{"a": 1}]', [{"a": 1}]),
        (b'[{"a": "],[\\"{"},\r\n {"a": {"b": [1, 2]}}]', [{"a": '],["{'}, {"a": {"b": [1, 2]}}]),
        (b'[{"a": 1}, 3, {"a": 2}]', [{"a": 1}, "not an object", {"a": 2}]),
        (b'[{"a": 1} {"a": 2}]', ["not JSON"]),
        (b'[{"a": 1},, {"a": 2},]', [{"a": 1}, "not JSON", {"a": 2}, "not JSON"]),
        (b'[{"a": "\xff"}, {"a": 2}]', ["not UTF-8", {"a": 2}]),
        (b'[{"a": 1, "a": 2}, {"a": NaN}]', ["duplicate key", "NaN or infinity"]),
        (b'[{"a": 1}, {"a": 2}', [{"a": 1}, "truncated JSON"]),
        (b'[{"a": 1}, {"a": "x', [{"a": 1}, "truncated JSON"]),
        (b"[", ["truncated JSON"]),
        (b'[{"a": 1}] trailing', [{"a": 1}, "text after the array"]),
        (b'[{"a": 1}}, {"a": 2}]', ["not JSON", {"a": 2}]),
    ],
)
def test_each_element_has_its_fields_or_its_reason(tmp_path: Path, content: bytes, expected: list[object]) -> None:
    records = read(tmp_path, content)
    assert [record.reason if record.fields is None else record.fields for record in records] == expected
    assert [record.number for record in records] == list(range(1, len(expected) + 1))


@pytest.mark.parametrize("content", [b'{"a": 1}', b"\n\n", b'{"a": 1}\n{"a": 2}\n', b"3", b"\xff"])
def test_a_file_that_is_no_array_is_refused_as_a_whole(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UserError, match=r"^rows\.json: a \.json file holds one array of objects"):
        read(tmp_path, content)


@given(
    st.lists(
        st.dictionaries(st.text(max_size=3), st.text(max_size=9) | st.lists(st.integers()), max_size=3), max_size=6
    )
)
def test_any_array_of_objects_is_read_as_json_reads_it(rows: list[dict[str, object]]) -> None:
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        Path(file.name).write_text(json.dumps(rows), encoding="utf-8")
        records = list(read_json(Path(file.name), "rows.json"))
    assert len(records) == len(rows)
    readable = [record.fields for record in records if record.reason is None]
    assert readable == [row for row in rows if "\\u0000" not in json.dumps(row)]


def test_an_element_of_megabytes_is_passed_over(tmp_path: Path) -> None:
    records = read(tmp_path, b'[{"a": "' + b'\\"' * MAX_ROW_BYTES + b'"}, {"a": 1}]')
    assert [record.reason for record in records] == ["line too long", None]
    assert records[0].text.num_bytes == 2 * MAX_ROW_BYTES + 9


def test_an_open_string_full_of_escaped_quotes_is_scanned_once(tmp_path: Path) -> None:
    (record,) = read(tmp_path, b'[{"a": "' + b'\\"' * 4_000_000)
    assert record.reason == "line too long"
