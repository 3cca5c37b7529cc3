"""Rows are checked in chunks with Python's collector of cycles off, and it runs again between them."""

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

from minillm import rows
from minillm.errors import UserError
from minillm.records import read_jsonl
from minillm.rows import Row, checked_rows
from minillm.sources import TRAIN, Source


@pytest.fixture
def source(tmp_path: Path) -> Source:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"instruction": "a", "output": "b"}\n' * 9000)
    columns = {"instruction": "instruction", "input": "input", "output": "output"}
    return Source("rows.jsonl", TRAIN, columns, lambda: read_jsonl(path, "rows.jsonl"))


@pytest.fixture
def collector() -> Iterator[None]:
    yield
    gc.enable()


class Cycle:
    def __init__(self) -> None:
        self.itself = self


def check_all(_, records):
    return [Row("a", "", ["b"], "") for _ in records]


def test_the_collector_is_off_in_a_chunk_and_on_between_chunks(source, collector, monkeypatch):
    monkeypatch.setattr(rows, "_CHUNK_ROWS", 3000)
    inside, between = [], []

    def check(_, records):
        inside.append(gc.isenabled())
        return check_all(_, records)

    for _ in checked_rows([source], check, 0):
        between.append(gc.isenabled())
    assert inside == [False] * 3
    assert between == [True] * 3
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off(source, collector):
    gc.disable()
    assert len(list(checked_rows([source], check_all, 0))) == 1
    assert not gc.isenabled()


def test_the_collector_is_on_after_an_error_and_after_a_reader_that_stops_early(source, collector, monkeypatch):
    monkeypatch.setattr(rows, "_CHUNK_ROWS", 3000)
    with pytest.raises(UserError, match="no row has the column 'answer'"):
        list(checked_rows([_without_output(source)], check_all, 0))
    assert gc.isenabled()
    next(checked_rows([source], check_all, 0))
    assert gc.isenabled()


def _without_output(source: Source) -> Source:
    return Source("x", TRAIN, {**source.columns, "output": "answer"}, source.read)


def test_cycles_that_a_check_makes_do_not_outlive_the_next_chunks(source, monkeypatch):
    monkeypatch.setattr(rows, "_CHUNK_ROWS", 3000)
    made = []

    def check(_, records):
        made.append(weakref.ref(Cycle()))
        return check_all(_, records)

    list(checked_rows([source], check, 0))
    assert made[0]() is None
