"""Where every stage reads and writes (the outs of dvc.yaml), and how files are written: whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from minillm.durable import sync

PREPARED_DIR = Path("data/prepared")
TRAIN_PATH = PREPARED_DIR / "train.parquet"
VALIDATION_PATH = PREPARED_DIR / "validation.parquet"
EVALUATION_SETS_DIR = PREPARED_DIR / "evaluation"
ANSWERS_PATH = PREPARED_DIR / "answers.parquet"
CORPUS_PATH = PREPARED_DIR / "corpus.parquet"
QUARANTINE_PATH = PREPARED_DIR / "quarantine.jsonl"
TEACHER_DIR = Path("models/teacher")
WARMUP_DIR = Path("models/warmup")
STUDENT_DIR = Path("models/student")
RESPONSES_DIR = Path("outputs/responses")
METRICS_DIR = Path("metrics")
PLOTS_DIR = Path("plots")
REPORT_PATH = Path("reports/report.html")
STATE_DIR = Path("state")  # of unfinished stages: outside every output, ignored by git and DVC
# STAGE/IDENTITY in it: checkpoints of a training stage; once it is trained, its best weights and FINISHED_NAME.
TRAINING_DIR = STATE_DIR / "training"
FINISHED_NAME = "finished.json"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary sibling path that takes the place of `path` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    yield temporary
    sync(temporary)
    os.replace(temporary, path)


def write_json(path: Path, content: Any) -> None:
    """Write sorted, indented JSON; NaN and infinity are refused with ValueError."""
    text = json.dumps(content, indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: Path) -> Any:
    """Return the parsed content of a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_curve(path: Path, rows: Sequence[dict[str, float]]) -> None:
    """Write rows as TSV with the union of their keys, `step` first; absent values stay empty."""
    names = sorted({name for row in rows for name in row} - {"step"})
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["step", *names], delimiter="\t", lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)


def now_ms() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def read_curve(path: Path) -> list[dict[str, float]]:
    """Return the rows of a curve; empty cells are left out."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file, delimiter="\t")
        return [{name: float(value) for name, value in row.items() if value} for row in rows]
