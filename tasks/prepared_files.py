"""The files that stage prepare leaves: every split, the packed corpus, the quarantine and the data report."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from minillm.config import DataConfig
from minillm.data_report import Quarantined, check_corpus, check_splits, data_report
from minillm.dataset import CORPUS_SCHEMA, EXAMPLE_SCHEMA
from minillm.packing import PackedCorpus
from minillm.preparation import DealtRows, SpooledRows, assigned, corpus_table, deal_rows, packed_corpus, row_index
from minillm.quarantine import quarantined_rows
from minillm.sources import CORPUS
from minillm.splits import Assignment
from tasks.storage import CORPUS_PATH, METRICS_DIR, PREPARED_DIR, QUARANTINE_PATH, replacing, write_json

_REPORT_PATH = METRICS_DIR / "prepare.json"


def publish(spooled: SpooledRows, data: DataConfig, directory: Path) -> dict[str, Any]:
    """Write the outputs and return the report; without rows for a split only the quarantine is written."""
    index = row_index(spooled)
    assignment = assigned(index, data)
    corpus = packed_corpus(spooled, assignment, data)
    shutil.rmtree(PREPARED_DIR, ignore_errors=True)
    quarantined = _write_quarantine(spooled, assignment)
    check_splits(index, assignment, quarantined, data, QUARANTINE_PATH)
    check_corpus(corpus, data)
    report = data_report(index, assignment, quarantined, corpus)
    examples = {split: rows for split, rows in assignment.rows.items() if split != CORPUS}
    _write_tables(deal_rows(spooled, examples, directory), corpus)
    write_json(_REPORT_PATH, report)
    return report


def _write_quarantine(spooled: SpooledRows, assignment: Assignment) -> Quarantined:
    """Write one line per row that was not accepted, and return their counts by file and reason."""
    quarantined: Quarantined = Counter()
    with replacing(QUARANTINE_PATH) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for line in quarantined_rows(spooled, assignment.faults):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            quarantined[line["file"], line["reason"]] += 1
    return quarantined


def _write_tables(dealt: DealtRows, corpus: PackedCorpus) -> None:
    for split in dealt.parts:
        write_parquet(PREPARED_DIR / f"{split}.parquet", EXAMPLE_SCHEMA, dealt.tables(split))
    write_parquet(CORPUS_PATH, CORPUS_SCHEMA, [corpus_table(corpus)])


def write_parquet(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for table in tables:
            writer.write_table(table)
