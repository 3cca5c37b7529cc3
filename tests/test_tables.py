"""Rows of CSV and Parquet files are records like those of JSON Lines."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minillm.errors import UserError
from minillm.records import MAX_ROW_BYTES, RawRecord
from minillm.tables import read_csv, read_parquet

HEADER = b"instruction,output\n"


def csv_records(tmp_path: Path, content: bytes) -> list[RawRecord]:
    path = tmp_path / "rows.csv"
    path.write_bytes(content)
    return list(read_csv(path, "rows.csv"))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"a,b\n", [(2, None)]),
        (b"a,b\r\nc,d", [(2, None), (3, None)]),
        (b'"a\nstill, a",b\nc,d\n', [(2, None), (4, None)]),
        (b"a\nb,c\n", [(2, "wrong number of columns"), (3, None)]),
        (b"a,b,c\nd,e\n", [(2, "wrong number of columns"), (3, None)]),
        (b"\nd,e\n", [(2, "blank line"), (3, None)]),
        (b"a,\xff\nd,e\n", [(2, "not UTF-8"), (3, None)]),
        (b"a,\x00\nd,e\n", [(2, "NUL byte"), (3, None)]),
        (b'"a"b,c\nd,e\n', [(2, "not CSV"), (3, None)]),
        (b'd,e\n"a,b\nc,d\n', [(2, None), (3, "not CSV")]),
        (b"a,b\rc,d\ne,f\n", [(2, "not CSV"), (3, None)]),
        (b"a," + b"x" * 200_000 + b"\nd,e\n", [(2, None), (3, None)]),
        (b"a," + b"x" * MAX_ROW_BYTES + b"\nd,e\n", [(2, "line too long"), (3, None)]),
    ],
)
def test_each_csv_row_has_its_line_and_its_reason(
    tmp_path: Path, body: bytes, expected: list[tuple[int, str | None]]
) -> None:
    records = csv_records(tmp_path, HEADER + body)
    assert [(record.number, record.reason) for record in records] == expected
    if all(record.text.is_whole for record in records):
        assert b"".join(record.raw for record in records) == body


def test_csv_cells_are_named_by_the_header_after_its_byte_order_mark(tmp_path: Path) -> None:
    (record,) = csv_records(tmp_path, b'\xef\xbb\xbfinstruction,output\r\n"Say ""hi"".","Hi,\nyou"\r\n')
    assert record.fields == {"instruction": 'Say "hi".', "output": "Hi,\nyou"}


@pytest.mark.parametrize("header", [b"a,a\n", b"a,\n", b"\n", b"a,\xff\n", b'"a\n', b"x" * (MAX_ROW_BYTES + 1)])
def test_a_csv_header_that_names_no_columns_is_refused(tmp_path: Path, header: bytes) -> None:
    with pytest.raises(UserError, match=r"^rows\.csv: line 1: .*header of"):
        csv_records(tmp_path, header)


def parquet_records(tmp_path: Path, table: pa.Table) -> list[RawRecord]:
    pq.write_table(table, tmp_path / "rows.parquet")
    return list(read_parquet(tmp_path / "rows.parquet", "rows.parquet"))


def test_parquet_rows_are_numbered_across_batches_and_keep_lists(tmp_path: Path) -> None:
    outputs = [[f"answer {n}", "other"] for n in range(2500)]
    table = pa.table({"instruction": [f"task {n}" for n in range(2500)], "output": outputs})
    records = parquet_records(tmp_path, table)
    assert [record.number for record in records] == list(range(1, 2501))
    assert records[2400].fields == {"instruction": "task 2400", "output": ["answer 2400", "other"]}
    assert records[0].raw.decode() == '{"instruction": "task 0", "output": ["answer 0", "other"]}'


def test_parquet_text_that_is_not_utf8_is_one_bad_row(tmp_path: Path) -> None:
    column = pa.array([b"good", b"\xff\xfe", b"fine"]).cast(pa.binary()).view(pa.string())
    records = parquet_records(tmp_path, pa.table({"instruction": column}))
    assert [record.reason for record in records] == [None, "not UTF-8", None]
    assert b"\xff\xfe" in records[1].raw


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"not a table at all"])
def test_a_broken_parquet_file_is_refused_by_name(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(damage)
    with pytest.raises(UserError, match=r"^rows\.parquet: not a readable Parquet file after row 0: "):
        list(read_parquet(path, "rows.parquet"))


def test_a_parquet_value_that_python_cannot_hold_is_one_bad_row(tmp_path: Path) -> None:
    times = pa.array([0, 10_000_000, 1], pa.int32()).cast(pa.date32())  # days; the second lies beyond the year 9999
    table = pa.table({"instruction": ["a", "b", "c"], "output": ["x", "y", "z"], "when": times})
    pq.write_table(table, tmp_path / "rows.parquet")
    records = list(read_parquet(tmp_path / "rows.parquet", "rows.parquet"))
    assert [record.reason for record in records] == [None, "value out of range", None]
    assert records[2].fields is not None and records[2].fields["output"] == "z"
