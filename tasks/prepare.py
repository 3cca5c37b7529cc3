"""Stage prepare: read every row, quarantine the bad ones with their reason, split, tokenise, report."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from minillm.blackbox import read_answers
from minillm.config import DataConfig, TeacherModelConfig
from minillm.dataset import ANSWERS_SCHEMA, read_examples
from minillm.encoding import TOKEN_SCHEMA, Encoder, check_template, encoded_rows
from minillm.preparation import SpooledRows
from minillm.rows import ROW_SCHEMA, checked_rows
from minillm.sources import EVALUATION_PREFIX, Source, data_path, open_sources
from minillm.spool import write_spool
from minillm.tokenizers import load_tokenizer
from tasks.prepared_files import publish, write_parquet
from tasks.progress import progress
from tasks.schemas import check_rows
from tasks.storage import ANSWERS_PATH, PREPARED_DIR, TRAIN_PATH, VALIDATION_PATH

if TYPE_CHECKING:
    from tasks.tracking import Tracker

logger = logging.getLogger(__name__)


def run(seed: int, teacher_model: TeacherModelConfig, data: DataConfig, tracker: Tracker) -> None:
    """Write the prepared splits, the packed corpus, the quarantine and the data report."""
    sources, answers_path = open_sources(data, seed), _answers_path(data)
    tokenizer = load_tokenizer(teacher_model.source, teacher_model.location, teacher_model.revision)
    check_template(tokenizer, data.template)
    encoder = Encoder(tokenizer, data.template, data.max_prompt_tokens)
    with tempfile.TemporaryDirectory(prefix="minillm-prepare-") as name:
        directory = Path(name)
        report = publish(spooled_rows(sources, seed, encoder, directory), data, directory)
    if answers_path is not None:
        _write_answers(answers_path)
    _record(report, tracker)


def _answers_path(data: DataConfig) -> Path | None:
    return data_path(data.root, "data.answers_file", data.answers_file, [".jsonl"]) if data.answers_file else None


def _write_answers(path: Path) -> None:
    """Write a black-box teacher's answer to every training row; a missing one is an error."""
    answers = read_answers(path, read_examples(TRAIN_PATH))
    columns = {"row_id": list(answers), "output": list(answers.values())}
    write_parquet(ANSWERS_PATH, ANSWERS_SCHEMA, [pa.table(columns, schema=ANSWERS_SCHEMA)])


def spooled_rows(sources: Sequence[Source], seed: int, encoder: Encoder, directory: Path) -> SpooledRows:
    """Return every row of the sources, checked and encoded; all are checked before the slow encoding starts."""
    logger.info("prepare: reading %s", ", ".join(source.file for source in sources))
    rows = write_spool(directory / "rows.arrow", ROW_SCHEMA, checked_rows(sources, check_rows, seed))
    encoded = progress(encoded_rows(rows, encoder), "prepare: tokenise", rows.num_rows, len)
    return SpooledRows(sources, rows, write_spool(directory / "tokens.arrow", TOKEN_SCHEMA, encoded))


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
