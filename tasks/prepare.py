"""Stage prepare: read every row, quarantine the bad ones with their reason, split, tokenise, report."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from minillm.blackbox import read_answers
from minillm.config import DataConfig, TeacherModelConfig
from minillm.data_report import Quarantined, check_corpus, check_splits, data_report
from minillm.dataset import ANSWERS_SCHEMA, CORPUS_SCHEMA, EXAMPLE_SCHEMA, read_examples
from minillm.encoding import TOKEN_SCHEMA, Encoder, check_template, encoded_rows
from minillm.packing import PackedCorpus
from minillm.preparation import SpooledRows, assigned, corpus_table, example_tables, packed_corpus
from minillm.quarantine import quarantined_rows
from minillm.rows import ROW_SCHEMA, checked_rows
from minillm.sources import CORPUS, EVALUATION_PREFIX, Source, data_path, open_sources
from minillm.splits import Assignment
from minillm.spool import batched, open_spool, write_spool
from minillm.tokenizers import load_tokenizer
from tasks.progress import progress
from tasks.schemas import check_rows
from tasks.storage import (
    ANSWERS_PATH,
    CORPUS_PATH,
    METRICS_DIR,
    PREPARED_DIR,
    QUARANTINE_PATH,
    TRAIN_PATH,
    VALIDATION_PATH,
    replacing,
    write_json,
)

if TYPE_CHECKING:
    from tasks.tracking import Tracker

logger = logging.getLogger(__name__)

_REPORT_PATH = METRICS_DIR / "prepare.json"


def run(seed: int, teacher_model: TeacherModelConfig, data: DataConfig, tracker: Tracker) -> None:
    """Write the prepared splits, the packed corpus, the quarantine and the data report."""
    sources, answers_path = open_sources(data, seed), _answers_path(data)
    tokenizer = load_tokenizer(teacher_model.source, teacher_model.location, teacher_model.revision)
    check_template(tokenizer, data.template)
    encoder = Encoder(tokenizer, data.template, data.max_prompt_tokens, seed)
    with tempfile.TemporaryDirectory(prefix="minillm-prepare-") as directory:
        report = _publish(_spooled(sources, encoder, Path(directory)), data)
    if answers_path is not None:
        _write_answers(answers_path)
    _record(report, tracker)


def _answers_path(data: DataConfig) -> Path | None:
    return data_path(data.root, "data.answers_file", data.answers_file, [".jsonl"]) if data.answers_file else None


def _write_answers(path: Path) -> None:
    """Write a black-box teacher's answer to every training row; a missing one is an error."""
    answers = read_answers(path, read_examples(TRAIN_PATH))
    columns = {"row_id": list(answers), "output": list(answers.values())}
    _write_parquet(ANSWERS_PATH, ANSWERS_SCHEMA, [pa.table(columns, schema=ANSWERS_SCHEMA)])


def _spooled(sources: Sequence[Source], encoder: Encoder, directory: Path) -> SpooledRows:
    """Return every row of the sources, checked and encoded; all are checked before the slow encoding starts."""
    rows_path, tokens_path = directory / "rows.arrow", directory / "tokens.arrow"
    logger.info("prepare: reading %s", ", ".join(source.file for source in sources))
    write_spool(rows_path, ROW_SCHEMA, checked_rows(sources, check_rows))
    rows = open_spool(rows_path)
    encoded = progress(encoded_rows(rows, encoder), "prepare: tokenise", rows.num_rows)
    write_spool(tokens_path, TOKEN_SCHEMA, batched(encoded))
    return SpooledRows(sources, rows, open_spool(tokens_path))


def _publish(spooled: SpooledRows, data: DataConfig) -> dict[str, Any]:
    """Write the outputs and return the report; without rows for a split only the quarantine is written."""
    assignment = assigned(spooled, data)
    corpus = packed_corpus(spooled, assignment, data)
    shutil.rmtree(PREPARED_DIR, ignore_errors=True)
    quarantined = _write_quarantine(spooled, assignment)
    check_splits(spooled, assignment, quarantined, data, QUARANTINE_PATH)
    check_corpus(corpus, data)
    report = data_report(spooled, assignment, quarantined, corpus)
    _write_tables(spooled, assignment, corpus)
    write_json(_REPORT_PATH, report)
    return report


def _write_quarantine(spooled: SpooledRows, assignment: Assignment) -> Quarantined:
    """Write one line per row that was not accepted, and return their counts by file and reason."""
    files = [source.file for source in spooled.sources]
    quarantined: Quarantined = Counter()
    with replacing(QUARANTINE_PATH) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        for line in quarantined_rows(spooled.rows, spooled.tokens, files, assignment.faults):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            quarantined[line["file"], line["reason"]] += 1
    return quarantined


def _write_tables(spooled: SpooledRows, assignment: Assignment, corpus: PackedCorpus) -> None:
    for split, rows in assignment.rows.items():
        if split != CORPUS:
            _write_parquet(PREPARED_DIR / f"{split}.parquet", EXAMPLE_SCHEMA, example_tables(spooled, rows))
    _write_parquet(CORPUS_PATH, CORPUS_SCHEMA, [corpus_table(corpus)])


def _write_parquet(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for table in tables:
            writer.write_table(table)


def _record(report: dict[str, Any], tracker: Tracker) -> None:
    """Track the data sets and the main counts, and say them."""
    rows, splits = report["rows"], report["splits"]
    tracker.dataset("train", TRAIN_PATH)
    tracker.dataset("validation", VALIDATION_PATH)
    for name in splits["evaluation"]:
        tracker.dataset(name, PREPARED_DIR / f"{EVALUATION_PREFIX}{name}.parquet")
    tracker.summary({f"data/rows_{name}": number for name, number in rows.items()})
    tracker.summary({"data/train_rows": splits["train"], "data/validation_rows": splits["validation"]})
    logger.info(
        "prepare: %d rows read, %d accepted, %d quarantined %s; splits: %s",
        rows["input"],
        rows["accepted"],
        rows["quarantined"],
        report["reasons"],
        splits,
    )
