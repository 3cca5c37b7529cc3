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
    return pa.Check(is_right, element_wise=True, error=reason)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_not_blank(value: Any) -> bool:
    return not isinstance(value, str) or bool(value.strip())


def _are_texts(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, str) for value in values)


def _are_not_blank(values: Any) -> bool:
    return not _are_texts(values) or (bool(values) and all(value.strip() for value in values))


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
    """Return the row of each parsed record, or why it is not an instruction row; `columns` maps our names to theirs."""
    fields = [_instruction_fields(record.fields or {}, columns) for record in records]
    faults = _faults(INSTRUCTION_ROWS, fields, columns)
    return [faults[n] if n in faults else _instruction_row(row) for n, row in enumerate(fields)]


def check_corpus_rows(records: Sequence[RawRecord], columns: Mapping[str, str]) -> list[Row | RecordFault]:
    """Return the document of each parsed record, or why it is none: a document is a response to no prompt."""
    fields = [{"text": (record.fields or {}).get(columns["text"])} for record in records]
    faults = _faults(CORPUS_ROWS, fields, columns)
    return [faults[n] if n in faults else Row("", "", [str(row["text"])], "") for n, row in enumerate(fields)]


def _instruction_fields(fields: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Return our columns of one row: an absent input or category is empty, one output is a list of one."""
    output = fields.get(columns["output"])
    context, category = fields.get(columns["input"]), fields.get("category")
    return {
        "instruction": fields.get(columns["instruction"]),
        "input": "" if context is None else context,
        "output": [output] if isinstance(output, str) else output,
        "category": "" if category is None else str(category) if isinstance(category, int) else category,
    }


def _instruction_row(fields: Mapping[str, Any]) -> Row:
    return Row(fields["instruction"], fields["input"], fields["output"], fields["category"])


def _faults(
    schema: pa.DataFrameSchema, fields: Sequence[Mapping[str, Any]], columns: Mapping[str, str]
) -> dict[int, RecordFault]:
    """Return the first fault of each row that the schema refuses."""
    frame = pd.DataFrame({name: pd.Series([row[name] for row in fields], dtype=object) for name in schema.columns})
    try:
        schema.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as error:
        cases = error.failure_cases.drop_duplicates("index")
        found = zip(cases["index"], cases["column"], cases["check"], strict=True)
        return {int(index): _fault(name, check, fields[int(index)], columns) for index, name, check in found}
    return {}


def _fault(name: str, check: str, fields: Mapping[str, Any], columns: Mapping[str, str]) -> RecordFault:
    source_name = columns.get(name, name)
    if check == NULL_REASON:
        return RecordFault(f"{name} missing", f"column {source_name!r}")
    return RecordFault(f"{name} {check}", f"column {source_name!r}: {shown(fields[name])}")
