"""Rows that were not accepted: one JSON object each, with file, line, reason and the raw text."""

from __future__ import annotations

import base64
import codecs
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from minillm.preparation import SpooledRows
from minillm.records import RecordFault
from minillm.splits import Faults

_ROW_COLUMNS = ["source", "number", "raw", "num_bytes", "sha256", "reason", "detail"]
_TOKEN_COLUMNS = ["token_reason", "token_detail"]


def quarantined_rows(spooled: SpooledRows, faults: Faults) -> Iterator[dict[str, Any]]:
    """Yield every row that is in no split, in input order; `faults` are those found when splits were assigned."""
    files = [source.file for source in spooled.sources]
    late = faults.rows()
    start = 0
    for batch in spooled.batches(_ROW_COLUMNS, _TOKEN_COLUMNS):
        places = np.arange(start, start + batch.num_rows)
        is_late = pa.array(np.isin(places, late))
        is_refused = pc.or_(is_late, pc.or_(batch["reason"].is_valid(), batch["token_reason"].is_valid()))
        refused = batch.append_column("place", pa.array(places)).filter(is_refused)
        for row in refused.to_pylist():
            yield quarantine_line(files[row["source"]], row, _own_fault(row) or faults[row["place"]])
        start += batch.num_rows


def _own_fault(row: Mapping[str, Any]) -> RecordFault | None:
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
