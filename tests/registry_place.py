"""A student as a finished pipeline leaves it: files, metrics and dvc.lock; and what MLflow's registry then holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from tasks.integrity import output_md5
from tasks.storage import write_json
from tests.mlflow_place import client

STUDENT, METRICS = Path("models/student"), Path("metrics/evaluate.json")
ROUGE, DISTANCE = "final/student_rougeL", "final/student_reverse_kl"
NAME = "minillm-student"


def make_student(
    weights: str, rouge: float = 50.0, distance: float = 1.0, rows: str = "rows", teacher: str = "t", **evaluate: Any
) -> str:
    """Write a student that was judged on rows and a teacher, and return its md5."""
    STUDENT.mkdir(parents=True, exist_ok=True)
    (STUDENT / "model.safetensors").write_text(weights)
    (STUDENT / "config.json").write_text("{}")
    (STUDENT / "tokenizer.json").write_text("{}")
    return judge_student(rouge, distance, rows, teacher, **evaluate)


def judge_student(
    rouge: float = 50.0, distance: float = 1.0, rows: str = "rows", teacher: str = "t", **evaluate: Any
) -> str:
    """Write how the student there is was judged, and return its md5."""
    path = Path("data/prepared/evaluation/test.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(rows)
    models = {"teacher": {}, "warmup": {"reverse_kl": 2.0}, "student": {"reverse_kl": distance}}
    rouges = {"teacher": 60.0, "warmup": 40.0, "student": rouge}
    write_json(METRICS, {name: {"test": {**scores, **_sampled(rouges[name])}} for name, scores in models.items()})
    return record_student(teacher, **evaluate)


def record_student(teacher: str = "t", judged: str | None = None, **evaluate: Any) -> str:
    """Write dvc.lock as after all stages, or with another student judged, and return the md5 of the student."""
    md5 = output_md5(STUDENT)
    assert md5 is not None
    settings = {"sets": ["test"], "max_rows": 0, "batch_size": 8, "temperature": 1.0, **evaluate}
    stages = {
        "distill": {"outs": [{"path": str(STUDENT), "md5": md5}]},
        "evaluate": {
            "deps": [{"path": str(STUDENT), "md5": judged or md5}, {"path": "models/teacher", "md5": teacher}],
            "params": {"params.yaml": {"evaluate": settings}},
            "outs": [{"path": str(METRICS), "md5": output_md5(METRICS)}],
        },
    }
    YAML(typ="safe").dump({"schema": "2.0", "stages": stages}, Path("dvc.lock"))
    return md5


def versions() -> list[Any]:
    """Return the versions, the oldest first."""
    return sorted(client().search_model_versions(f"name = '{NAME}'"), key=lambda version: int(version.version))


def aliases() -> dict[str, int]:
    found = client().search_registered_models(f"name = '{NAME}'")
    return {alias: int(number) for alias, number in found[0].aliases.items()} if found else {}


def _sampled(rouge: float) -> dict[str, Any]:
    return {"sampled": {"rougeL": rouge, "rougeL_std": 1.0, "length_mean": 5.0, "eos_rate": 1.0, "distinct_4": 0.5}}
