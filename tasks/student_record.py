"""What dvc.lock says about the student at hand: its md5, how it was judged and on what; and where its files are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minillm.digests import digest
from minillm.params import read_yaml
from tasks.integrity import cached_files, output_md5
from tasks.lineage import LOCK_PATH, file_md5
from tasks.report import final_numbers
from tasks.reporting.inputs import Document, load_metrics, mean_scores, set_scores
from tasks.storage import EVALUATION_SETS_DIR, METRICS_DIR, STUDENT_DIR, TEACHER_DIR

# Of evaluate: sizes of batches change no result beyond rounding, and the sets count by their contents.
_NOT_COMPARED = ("batch_size", "score_batch_tokens", "sets")
_JUDGED = "final/student_"


@dataclass(frozen=True)
class Student:
    """A student as DVC recorded it. The finals are empty when it was not evaluated."""

    md5: str
    finals: Mapping[str, float]
    evaluations: Mapping[str, str]  # metric of the student -> digest of what it was judged on


def recorded_student() -> Student | None:
    """Return the student of dvc.lock, None when there is none; raises UserError for metrics that cannot be read."""
    stages = read_yaml(LOCK_PATH).get("stages", {}) if LOCK_PATH.exists() else {}
    md5 = _md5s(stages.get("distill", {}), "outs").get(str(STUDENT_DIR))
    if md5 is None:
        return None
    evaluate = stages.get("evaluate", {})
    inputs, outputs = _md5s(evaluate, "deps"), _md5s(evaluate, "outs")
    path = METRICS_DIR / "evaluate.json"
    is_judged = inputs.get(str(STUDENT_DIR)) == md5 and outputs.get(str(path)) == file_md5(path)
    if not is_judged:
        return Student(md5, {}, {})
    metrics = load_metrics("evaluate")
    return Student(md5, _finals(metrics), _evaluations(metrics, evaluate, inputs[str(TEACHER_DIR)]))


def student_files(md5: str) -> dict[str, Path] | None:
    """Return the files of a student by name, from its directory or from DVC's cache; None when it is in neither."""
    if output_md5(STUDENT_DIR) == md5:
        return {path.relative_to(STUDENT_DIR).as_posix(): path for path in STUDENT_DIR.rglob("*") if path.is_file()}
    return cached_files(md5)


def _md5s(stage: Mapping[str, Any], kind: str) -> dict[str, str]:
    return {entry["path"]: entry["md5"] for entry in stage.get(kind, ()) if "md5" in entry}


def _finals(metrics: Document) -> dict[str, float]:
    numbers = final_numbers(mean_scores(set_scores(metrics)))
    return {f"final/{model}_{name}": value for model, row in numbers.items() for name, value in row.items()}


def _evaluations(metrics: Document, evaluate: Mapping[str, Any], teacher_md5: str) -> dict[str, str]:
    """Return what each metric of the student depends on beside it: rows and settings, for the distance the teacher.

    Nothing when rows that it was judged on are not here: it is not known then with whom it can be compared.
    """
    settings = evaluate["params"]["params.yaml"]["evaluate"]
    kept = {name: value for name, value in settings.items() if name not in _NOT_COMPARED}
    rows = {name: file_md5(EVALUATION_SETS_DIR / f"{name}.parquet") for name in metrics.names("student")}
    if None in rows.values():
        return {}
    same = [kept, rows]
    return {
        f"{_JUDGED}rougeL": _short(same),
        f"{_JUDGED}reverse_kl": _short([*same, teacher_md5]),
    }


def _short(value: Any) -> str:
    return digest(value).hex()[:16]
