"""What a run's page in Prefect shows: what DVC did, the results, and where else the run can be seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact, create_table_artifact

from flows.reproduction import StageRun
from tasks.storage import METRICS_DIR, REPORT_PATH, read_json


def publish_stages(runs: Mapping[str, StageRun]) -> None:
    """Show what was done with each stage."""
    table = [{"stage": name, "outcome": run.outcome, "seconds": round(run.wall_s, 1)} for name, run in runs.items()]
    create_table_artifact(table=table, key="stages", description="What DVC did with each stage")


def publish_results(path: Path, mlflow_page: str) -> None:
    """Show the final metrics of a workspace, if it has some."""
    report = path / METRICS_DIR / "report.json"
    if not report.exists():
        return
    table = [{"metric": name, "value": value} for name, value in _leaves(read_json(report), "")]
    description = f"[MLflow]({mlflow_page}) | report: `{path / REPORT_PATH}`"
    create_table_artifact(table=table, key="results", description=description)


def publish_experiment(name: str, mlflow_page: str) -> None:
    """Show how to get at the DVC experiment that a run ended as."""
    lines = [
        f"DVC experiment `{name}`:",
        "- `dvc exp show` lists it",
        f"- `dvc exp apply {name}` brings its params, models and metrics into the workspace",
        f"- [MLflow]({mlflow_page}) has it as the run of that name (tag `dvc.experiment`)",
    ]
    create_markdown_artifact(markdown="\n".join(lines), key="experiment", description="What this run ended as")


def _leaves(content: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the slash-joined path and the value of every leaf of nested mappings."""
    if not isinstance(content, dict):
        yield prefix, content
        return
    for key, value in content.items():
        yield from _leaves(value, f"{prefix}/{key}" if prefix else str(key))
