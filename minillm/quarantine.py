"""Rows that were not accepted: one JSON object each, with file, line, reason and the raw text."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from minillm.records import RecordFault
from minillm.spool import table_rows

_COLUMNS = ["source", "number", "raw", "num_bytes", "sha256", "reason", "detail"]


def quarantined_rows(
    rows: pa.Table, tokens: pa.Table, files: Sequence[str], faults: Mapping[int, RecordFault]
) -> Iterator[dict[str, Any]]:
    """Yield every row that is in no split, in input order; `faults` are those found when splits were assigned."""
    table = pa.table(
        {
            **{name: rows[name] for name in _COLUMNS},
            "token_reason": tokens["token_reason"],
            "token_detail": tokens["token_detail"],
        }
    )
    for number, row in enumerate(table_rows(table)):
        fault = _fault(row) or faults.get(number)
        if fault is not None:
            yield quarantine_line(files[row["source"]], row, fault)


def _fault(row: Mapping[str, Any]) -> RecordFault | None:
    if row["reason"] is not None:
        return RecordFault(row["reason"], row["detail"])
    return None if row["token_reason"] is None else RecordFault(row["token_reason"], row["token_detail"])


def quarantine_line(file: str, row: Mapping[str, Any], fault: RecordFault) -> dict[str, Any]:
    """Return the object that is written for one row; a cut raw text carries full length and hash beside it."""
    line = {"file": file, "line": row["number"], "reason": fault.reason, "detail": fault.detail}
    is_cut = row["num_bytes"] > len(row["raw"])
    full = {"raw_num_bytes": row["num_bytes"], "raw_sha256": row["sha256"]} if is_cut else {}
    return line | _raw_text(row["raw"], is_cut) | full


def _raw_text(raw: bytes, is_cut: bool) -> dict[str, str]:
    """Return the raw bytes as text when they are text; a character that the cut divides is left off."""
    try:
        return {"raw": codecs.getincrementaldecoder("utf-8")().decode(raw, final=not is_cut)}
    except UnicodeDecodeError:
        return {"raw_base64": base64.b64encode(raw).decode("ascii")}
