"""Pandera schemas of the tables that enter the pipeline: what a row must be, and the reason when it is not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import pandera.pandas as pa

from minillm.records import RawRecord, RecordFault, shown
from minillm.rows import Row
from minillm.sources import CORPUS, Source

NULL_REASON = "not_nullable"  # pandera's own name of the check that a value is there


def _check(is_right: Callable[[Any], bool], reason: str) -> pa.Check:
    """Return a check of a whole column, which costs less than pandera's own walk over elements."""
    return pa.Check(lambda column: pd.Series([is_right(value) for value in column], column.index), error=reason)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_not_blank(value: Any) -> bool:
    return not isinstance(value, str) or bool(value.strip())


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and {*map(type, values)} <= {str}


def _are_not_blank(values: Any) -> bool:
    return not _are_texts(values) or (bool(values) and all(map(str.strip, values)))


# Order matters: the first check that a row fails gives its reason.
INSTRUCTION_ROWS = pa.DataFrameSchema(
    {
        "instruction": pa.Column(object, [_check(_is_text, "not text"), _check(_is_not_blank, "blank")]),
        "input": pa.Column(object, [_check(_is_text, "not text")]),
        "output": pa.Column(object, [_check(_are_texts, "not text"), _check(_are_not_blank, "blank")]),
        "category": pa.Column(object, [_check(_is_text, "not text")]),
    }
)
CORPUS_ROWS = pa.DataFrameSchema(
    {
        "text": pa.Column(object, [_check(_is_text, "not text"), _check(_is_not_blank, "blank")]),
    }
)


def check_rows(source: Source, records: Sequence[RawRecord]) -> list[Row | RecordFault]:
    """Return the row of each parsed record of a source, or why it cannot be used."""
    check = check_corpus_rows if source.split == CORPUS else check_instruction_rows
    return check(records, source.columns)


def check_instruction_rows(records: Sequence[RawRecord], columns: Mapping[str, str]) -> list[Row | RecordFault]:
    """Return the row of each parsed record, or why it is not an instruction row; `columns` maps our names to theirs.

    An absent input or category is empty, one output is a list of one.
    """
    rows = [record.fields or {} for record in records]
    table = {
        "instruction": [row.get(columns["instruction"]) for row in rows],
        "input": ["" if (value := row.get(columns["input"])) is None else value for row in rows],
        "output": [[value] if isinstance(value := row.get(columns["output"]), str) else value for row in rows],
        "category": [_category(row.get("category")) for row in rows],
    }
    faults = _faults(INSTRUCTION_ROWS, table, columns)
    return [faults.get(number) or Row(*values) for number, values in enumerate(zip(*table.values(), strict=True))]


def check_corpus_rows(records: Sequence[RawRecord], columns: Mapping[str, str]) -> list[Row | RecordFault]:
    """Return the document of each parsed record, or why it is none: a document is a response to no prompt."""
    texts = [(record.fields or {}).get(columns["text"]) for record in records]
    faults = _faults(CORPUS_ROWS, {"text": texts}, columns)
    return [faults.get(number) or Row("", "", [str(text)], "") for number, text in enumerate(texts)]


def _category(value: Any) -> Any:
    if value is None:
        return ""
    return str(value) if isinstance(value, int) else value


def _faults(
    schema: pa.DataFrameSchema, table: Mapping[str, list[Any]], columns: Mapping[str, str]
) -> dict[int, RecordFault]:
    """Return the first fault of each row that the schema refuses."""
    frame = pd.DataFrame({name: pd.Series(table[name], dtype=object) for name in schema.columns})
    try:
        schema.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases.drop_duplicates("index")
        found = zip(cases["index"], cases["column"], cases["check"], strict=True)
        return {int(index): _fault(name, check, table[name][int(index)], columns) for index, name, check in found}
    return {}


def _fault(name: str, check: str, value: Any, columns: Mapping[str, str]) -> RecordFault:
    source_name = columns.get(name, name)
    if check == NULL_REASON:
        return RecordFault(f"{name} missing", f"column {source_name!r}")
    return RecordFault(f"{name} {check}", f"column {source_name!r}: {shown(value)}")
