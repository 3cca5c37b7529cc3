"""The Prefect flow: one task per stage of dvc.yaml, each `dvc repro --single-item`; DVC alone decides what is stale."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from prefect import flow, get_run_logger, runtime, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import Failed
from prefect.utilities.urls import url_for
from pydantic import BaseModel, ConfigDict, Field

from flows.dvc_process import DvcError, StageRun, is_up_to_date, reproduce
from flows.environment import LASTING_PAGES_VARIABLE, mlflow_url
from flows.finish import record_outcomes
from flows.graph import select_stages
from flows.progress_artifact import ProgressArtifact
from minillm.errors import UserError
from minillm.params import load_params
from minillm.preflight import check_models
from tasks.storage import METRICS_DIR, REPORT_PATH, read_json

_PROGRESS_EVERY_S = 2.0  # an update costs a request to the server


class PipelineRequest(BaseModel):
    """What one run of the pipeline shall do; the knobs of the stages are in params.yaml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stages: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]] = Field(
        default=[], description="Names of stages of dvc.yaml to bring up to date, in graph order; empty = all."
    )


_EVERYTHING = PipelineRequest()


@flow(name="pipeline", retries=0, persist_result=False)  # type: ignore[untyped-decorator]
def pipeline(request: PipelineRequest = _EVERYTHING) -> Any:
    """Bring the stages up to date in graph order; returns stage -> outcome, or a failed state that says what to do."""
    root = Path.cwd()
    try:
        params = load_params(root / "params.yaml")
        check_models(params.teacher_model, params.student_model)
        stages = select_stages(root, request.stages)
    except UserError as error:
        return Failed(message=str(error))
    runs: dict[str, StageRun] = {}
    for name in stages:
        state = run_stage.with_options(name=name, task_run_name=name)(name, _stage_environment(), return_state=True)
        if not state.is_completed():
            return Failed(message=state.message, data=state.data)
        runs[name] = StageRun(**state.result())
    record_outcomes(params, runs, _stage_environment())
    _publish_stages(runs)
    _publish_results(root, mlflow_url(params.tracking))
    if not is_up_to_date(root):
        get_run_logger().warning("`dvc status` is not clean: an input was edited, or not every stage was asked for")
    return {name: run.outcome for name, run in runs.items()}


@task(retries=0, cache_policy=NO_CACHE, persist_result=False)  # type: ignore[untyped-decorator]
def run_stage(name: str, environment: dict[str, str]) -> Any:
    """Bring one stage up to date and return the fields of its StageRun, or a failed state that carries the DvcError."""
    logger = get_run_logger()
    bar = ProgressArtifact(name, logger)
    start_s = time.monotonic()

    def on_line(line: str) -> None:
        logger.info(line)
        bar.read(line)

    try:
        run = reproduce(Path.cwd(), name, on_line, environment)[name]
    except DvcError as error:
        return Failed(message=f"{error}: {_reason(error)}", data=error)
    except UserError as error:
        return Failed(message=str(error), data=error)
    logger.info("stage %s: %s in %.1f s", name, run.outcome, time.monotonic() - start_s)
    return {"outcome": run.outcome, "wall_s": run.wall_s}


def _stage_environment() -> dict[str, str]:
    """Return what ties the runs that stages record in MLflow to this flow run."""
    flow_run_id = str(runtime.flow_run.id)
    page = url_for("flow-run", obj_id=flow_run_id) or ""
    # A server that lives as long as this run keeps its runs where a lasting one will find and show them.
    if lasting := os.environ.get(LASTING_PAGES_VARIABLE):
        page = lasting + urlsplit(page).path
    return {
        "MINILLM_PIPELINE_KEY": flow_run_id,
        "MINILLM_PREFECT_FLOW_RUN_ID": flow_run_id,
        "MINILLM_PREFECT_URL": page,
    }


def _publish_stages(runs: dict[str, StageRun]) -> None:
    table = [{"stage": name, "outcome": run.outcome, "seconds": round(run.wall_s, 1)} for name, run in runs.items()]
    create_table_artifact(table=table, key="stages", description="What DVC did with each stage")


def _publish_results(root: Path, mlflow_page: str) -> None:
    path = root / METRICS_DIR / "report.json"
    if not path.exists():
        return
    table = [{"metric": name, "value": value} for name, value in _leaves(read_json(path), "")]
    description = f"[MLflow]({mlflow_page}) | report: `{root / REPORT_PATH}`"
    create_table_artifact(table=table, key="results", description=description)


def _leaves(content: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield the slash-joined path and the value of every leaf of nested mappings."""
    if not isinstance(content, dict):
        yield prefix, content
        return
    for key, value in content.items():
        yield from _leaves(value, f"{prefix}/{key}" if prefix else str(key))


def _reason(error: DvcError) -> str:
    """Return the last line of the stage itself, which says more than DVC's own "failed to reproduce"."""
    told = [line for line in error.lines if line and not line.startswith(("ERROR: failed to reproduce", "> "))]
    return told[-1] if told else "it printed nothing"
