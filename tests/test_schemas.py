"""What a row must be to enter, and the reason of one that may not."""

from __future__ import annotations

from typing import Any

import pandera.pandas as pa
import pytest

from minillm.records import RawRecord, RecordFault, whole_text
from minillm.rows import Row
from tasks.schemas import INSTRUCTION_ROWS, check_corpus_rows, check_instruction_rows

COLUMNS = {"instruction": "instruction", "input": "context", "output": "response"}


def record(fields: dict[str, Any]) -> RawRecord:
    return RawRecord("rows.jsonl", 1, whole_text(b""), fields, None, "")


def check(*rows: dict[str, Any]) -> list[Row | RecordFault]:
    return check_instruction_rows([record(row) for row in rows], COLUMNS)


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({"instruction": "a", "response": "b"}, Row("a", "", ["b"], "")),
        ({"instruction": "a", "context": None, "response": "b"}, Row("a", "", ["b"], "")),
        ({"instruction": "a", "context": "c", "response": ["b", "d"]}, Row("a", "c", ["b", "d"], "")),
        ({"instruction": "a", "response": " b\n", "category": "qa", "extra": {"x": [1]}}, Row("a", "", [" b\n"], "qa")),
        ({"instruction": "a", "response": "b", "category": 3}, Row("a", "", ["b"], "3")),
        ({"instruction": "a", "response": "b", "category": None}, Row("a", "", ["b"], "")),
    ],
)
def test_a_good_row_is_taken_as_it_is(fields: dict[str, Any], row: Row) -> None:
    assert check(fields) == [row]


@pytest.mark.parametrize(
    ("fields", "reason", "detail"),
    [
        ({}, "instruction missing", "column 'instruction'"),
        ({"instruction": None, "response": "b"}, "instruction missing", "column 'instruction'"),
        ({"instruction": 3, "response": "b"}, "instruction not text", "column 'instruction': 3"),
        ({"instruction": {"x": 1}, "response": "b"}, "instruction not text", "column 'instruction': {'x': 1}"),
        ({"instruction": " \n", "response": "b"}, "instruction blank", "column 'instruction': ' \\n'"),
        ({"instruction": "a", "context": ["c"], "response": "b"}, "input not text", "column 'context': ['c']"),
        ({"instruction": "a"}, "output missing", "column 'response'"),
        ({"instruction": "a", "response": True}, "output not text", "column 'response': True"),
        ({"instruction": "a", "response": ["b", None]}, "output not text", "column 'response': ['b', None]"),
        ({"instruction": "a", "response": [["b"]]}, "output not text", "column 'response': [['b']]"),
        ({"instruction": "a", "response": ""}, "output blank", "column 'response': ['']"),
        ({"instruction": "a", "response": []}, "output blank", "column 'response': []"),
        ({"instruction": "a", "response": ["b", "\t"]}, "output blank", "column 'response': ['b', '\\t']"),
        ({"instruction": "a", "response": "b", "category": [1]}, "category not text", "column 'category': [1]"),
    ],
)
def test_a_bad_row_is_refused_with_reason_and_column(fields: dict[str, Any], reason: str, detail: str) -> None:
    (fault,) = check(fields)
    assert isinstance(fault, RecordFault)
    assert (fault.reason, fault.detail) == (reason, detail)


def test_faults_stand_at_the_place_of_their_rows_and_a_row_has_one() -> None:
    good = {"instruction": "a", "response": "b"}
    checked = check(good, {"instruction": "", "context": 1, "response": ""}, good, {"instruction": "a"}, good)
    assert [item.reason if isinstance(item, RecordFault) else "good" for item in checked] == [
        "good",
        "instruction blank",
        "good",
        "output missing",
        "good",
    ]


def test_no_rows_are_no_faults() -> None:
    assert check() == []


def test_a_long_value_is_shortened_in_the_detail() -> None:
    (fault,) = check({"instruction": ["x" * 5000], "response": "b"})
    assert isinstance(fault, RecordFault)
    assert len(fault.detail) == len("column 'instruction': ") + 80


def test_the_schema_itself_refuses_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tasks.schemas.INSTRUCTION_ROWS",
        pa.DataFrameSchema({name: pa.Column(object, nullable=True) for name in INSTRUCTION_ROWS.columns}),
    )
    assert check({"instruction": 3, "response": ["b"]}) == [Row(3, "", ["b"], "")]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({"title": "t"}, "text missing"), ({"text": 1}, "text not text"), ({"text": " "}, "text blank")],
)
def test_a_document_needs_text(fields: dict[str, Any], reason: str) -> None:
    good, fault = check_corpus_rows([record({"text": "words"}), record(fields)], {"text": "text"})
    assert good == Row("", "", ["words"], "")
    assert isinstance(fault, RecordFault) and fault.reason == reason
