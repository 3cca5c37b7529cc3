"""Malformed CSV files, JSON arrays and Parquet files: every byte or row is accounted for, whatever stands there."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from minillm.errors import UserError
from minillm.json_arrays import read_json
from minillm.records import HEAD_BYTES, MAX_ROW_BYTES, RawRecord
from minillm.tables import read_csv, read_parquet
from tasks.storage import EVALUATION_SETS_DIR
from tests.malformed import BOM, fields, malformed_rows
from tests.prepare_stage import (
    quarantine,
    rows,
    run,
    workplace,  # noqa: F401 - a fixture for every test here
    write,
)
from tests.test_fuzz_rows import Text, check_kept, prepared_texts, text_of

CSV_HEADER = b"instruction,input,output\r\n"
CSV_KINDS: list[tuple[str, Callable[[int], str]]] = [
    *[("", lambda n: f"task {n},,answer {n}\n")] * 8,
    ("", lambda n: f"task {n},in,answer {n}\r\n"),
    ("", lambda n: f'"task {n}\n\n, two",,"say ""hi""\r\n"\n'),
    ("", lambda n: f"task\u2028{n},\u0085,{'x' * (200_000 if n % 50 == 0 else 9)}\n"),
    ("blank line", lambda n: ["\n", "\r\n", " \n"][n % 3]),
    ("wrong number of columns", lambda n: f"task {n},answer\n" if n % 2 else f"task {n},,answer,more\n"),
    ("not CSV", lambda n: f'"task {n}"x,,a\n' if n % 2 else f"task {n},a\rb,c\n"),
    ("not CSV", lambda n: f'"task {n}\n"x,,a\n'),
    ("not UTF-8", lambda n: f"task {n}\udcff,,a\n"),
    ("NUL byte", lambda n: f"task {n}\0,,a\n"),
    ("instruction blank", lambda n: f",{n},answer\n"),
    ("output blank", lambda n: f"task {n},,\n"),
    ("special token in text", lambda n: f"task {n},,<end>\n"),
]
LONG_CSV_KINDS: list[tuple[str, Callable[[int], str]]] = [
    ("line too long", lambda n: f"task {n},,{'x' * MAX_ROW_BYTES}\n"),
    ("line too long", lambda n: f'task {n},,"some\n{"x" * MAX_ROW_BYTES}\nmore"\n'),
]
# Of JSON array elements the faults that leave brackets and quotes in pairs, so that neighbours are not drawn in.
UNPAIRED = {"blank line", "not JSON", "truncated JSON", "duplicate row", None}


def csv_rows(num_rows: int, seed: int) -> list[tuple[str, bytes]]:
    draws = random.Random(seed)
    kinds = [draws.choice(CSV_KINDS) for _ in range(num_rows)]
    for place, kind in zip(draws.sample(range(num_rows), 2), LONG_CSV_KINDS, strict=True):
        kinds[place] = kind
    return [(reason, make(n).encode("utf-8", "surrogateescape")) for n, (reason, make) in enumerate(kinds)]


def csv_text(raw: bytes) -> Text:
    (cells,) = csv.reader(io.StringIO(raw.decode(), newline=""))
    return cells[0], cells[1], [cells[2]]


def test_fault_19_malformed_csv_rows_keep_their_order_reasons_and_bytes() -> None:
    made = csv_rows(3000, seed=1)
    Path("data/raw/mine.csv").write_bytes(BOM + CSV_HEADER + b"".join(raw for _, raw in made))
    write("train.jsonl", *rows(10, start=1_000_000))
    run(evaluation_files={"mine": "mine.csv"})
    number, lines = 2, iter(quarantine())
    for reason, raw in made:
        if reason:
            line = next(lines)
            assert (line["line"], line["reason"]) == (number, reason)
            check_kept(line, raw)
        number += raw.count(b"\n")
    assert next(lines, None) is None
    expected = [csv_text(raw) for reason, raw in made if not reason]
    assert prepared_texts(EVALUATION_SETS_DIR / "mine.parquet") == expected and len(expected) > 1000


def injured(draws: random.Random, content: bytes, num_injuries: int) -> bytes:
    """Return a file after random bytes have taken the place of others."""
    found = bytearray(content)
    junk = [b'"', b"\n", b"\r", b",", b"\0", b"\xff", b"\\", b"[", b"}", b'\\"', BOM, b""]
    for _ in range(num_injuries):
        place = draws.randrange(len(found))
        found[place : place + draws.randint(0, 3)] = draws.choice(junk)
    return bytes(found)


def check_whole(records: list[RawRecord], content: bytes, separators: bytes) -> int:
    """Check that records hold a file's bytes in order, each with at most one separator after it; return their end."""
    place = 0
    for record in records:
        raw = content[place : place + record.text.num_bytes]
        assert record.raw == (raw if record.text.is_whole else raw[:HEAD_BYTES])
        assert record.text.is_whole or record.text.sha256 == hashlib.sha256(raw).hexdigest()
        assert (record.fields is None) == (record.reason is not None)
        place += record.text.num_bytes
        place += content[place : place + 1] in [bytes([separator]) for separator in separators]
    return place


@pytest.mark.parametrize("seed", range(20))
def test_fault_19_the_rows_of_an_injured_csv_file_are_its_bytes(seed: int, tmp_path: Path) -> None:
    draws = random.Random(seed)
    body = injured(draws, b"".join(raw for _, raw in csv_rows(150, seed)), 60)
    (tmp_path / "rows.csv").write_bytes(CSV_HEADER + body)
    records = list(read_csv(tmp_path / "rows.csv", "rows.csv"))
    assert check_whole(records, body, b"") == len(body)
    place = 2
    for record in records:
        assert record.number == place
        place += body.count(b"\n", 0, record.text.num_bytes)
        body = body[record.text.num_bytes :]
        if record.fields is not None:
            assert tuple(record.fields.values()) == (*csv_text(record.raw)[:2], csv_text(record.raw)[2][0])


def test_fault_19_malformed_elements_of_a_json_array_keep_their_order_and_reasons() -> None:
    made = [found for found in malformed_rows(6000, seed=6) if found.reason not in UNPAIRED][1:]
    Path("data/raw/mine.json").write_bytes(BOM + b" [\n" + b",\n".join(found.raw for found in made) + b"\n]\n")
    write("train.jsonl", *rows(10, start=1_000_000))
    run(evaluation_files={"mine": "mine.json"})
    refused = [(number, found.reason) for number, found in enumerate(made, start=1) if found.reason]
    assert [(line["line"], line["reason"]) for line in quarantine()] == refused
    accepted = [text_of(found.raw) for found in made if not found.reason]
    assert prepared_texts(EVALUATION_SETS_DIR / "mine.parquet") == accepted
    assert min(len(refused), len(accepted)) > 900


@pytest.mark.parametrize("seed", range(20))
def test_fault_19_the_elements_of_an_injured_json_array_are_its_bytes(seed: int, tmp_path: Path) -> None:
    draws = random.Random(seed)
    body = b",".join(found.raw for found in malformed_rows(60, seed) if found.reason != "line too long")
    body = injured(draws, body + b"]", draws.choice([0, 1, 5, 30]))
    (tmp_path / "rows.json").write_bytes(b"[" + body)
    records = list(read_json(tmp_path / "rows.json", "rows.json"))
    assert not body[check_whole(records, body, b",]") :].strip(b" \t\r\n")
    assert [record.number for record in records] == list(range(1, len(records) + 1))
    for record in records:
        assert record.fields is None or record.fields == json.loads(record.raw.removeprefix(BOM))


def test_fault_19_malformed_parquet_rows_keep_their_order_and_reasons() -> None:
    bad = {"instruction missing": None, "instruction blank": " ", "NUL byte": "a\0", "prompt too long": "w " * 20}
    names = random.Random(8).choices(["", *bad, "not UTF-8", "line too long"], [20, 5, 5, 5, 5, 5, 0.05], k=3000)
    texts = {name: text and text.encode() for name, text in bad.items()}
    texts |= {"not UTF-8": b"task \xff", "line too long": b"x" * MAX_ROW_BYTES}
    instructions = [texts[name] if name else f"task {number}".encode() for number, name in enumerate(names)]
    columns = [pa.array(instructions, pa.binary()).view(pa.string()), pa.array([["yes"]] * len(names))]
    pq.write_table(pa.Table.from_arrays(columns, ["instruction", "output"]), "data/raw/mine.parquet")
    write("train.jsonl", *rows(10, start=1_000_000))
    run(evaluation_files={"mine": "mine.parquet"})
    refused = [(number, name) for number, name in enumerate(names, start=1) if name]
    assert [(line["line"], line["reason"]) for line in quarantine()] == refused
    accepted = [(f"task {number}", "", ["yes"]) for number, name in enumerate(names) if not name]
    assert prepared_texts(EVALUATION_SETS_DIR / "mine.parquet") == accepted and "line too long" in names


def test_fault_19_a_parquet_file_with_a_changed_footer_has_all_its_rows_or_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist([fields(number) for number in range(40)]), path, store_schema=False)
    content = path.read_bytes()
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    messages = []
    for place in range(footer, len(content)):
        for change in (0x02, 0x80):
            path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
            try:
                assert [record.number for record in read_parquet(path, "rows.parquet")] == list(range(1, 41))
            except UserError as error:
                messages.append(str(error))
    assert all(re.fullmatch(r"rows\.parquet: not a readable Parquet file[^\n]+", message) for message in messages)
    assert any("it has 40 rows, 41 by its own count" in message for message in messages)
    assert any("codec can't decode byte" in message for message in messages)  # the name of a column


def test_fault_19_a_parquet_file_with_two_columns_of_one_name_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], ["output", "output"]), path)
    with pytest.raises(UserError, match=r"^rows\.parquet: distinct column names are needed, these are .*'output'"):
        list(read_parquet(path, "rows.parquet"))
