"""One stage as a Prefect task: here by the `dvc repro` of its flow, or by a worker of another pool."""

from __future__ import annotations

import re
import time
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import ObjectNotFound
from prefect.states import Failed

from flows.progress_artifact import ProgressArtifact
from flows.reproduction import DvcError, Reproduction, StageRun
from flows.request import Origin, StageRequest
from flows.sent_run import run_elsewhere
from minillm.errors import UserError
from tasks.tracking_store import RUN_NAME_VARIABLE

STAGE_FLOW = "stage"
# What DVC tells a person who works in a terminal.
_HINTS = ("To track the changes", "git add ", "To enable auto staging", "dvc config core.autostage", "Use `dvc push`")
_DONE = re.compile(r"(?P<outcome>ran|skipped|restored) in (?P<wall_s>[0-9.]+) s")


def done_message(run: StageRun) -> str:
    """Return what the flow of a stage ends with; `send_stage` reads it."""
    return f"{run.outcome} in {run.wall_s:.1f} s"


def stage_environment(origin: Origin) -> dict[str, str]:
    """Return what ties the runs that stages record in MLflow to a pipeline."""
    known = {
        "MINILLM_PIPELINE_KEY": origin.pipeline_key,
        "MINILLM_PREFECT_FLOW_RUN_ID": origin.flow_run_id,
        "MINILLM_PREFECT_URL": origin.page,
        RUN_NAME_VARIABLE: origin.experiment,
    }
    return {name: value for name, value in known.items() if value}


@task(retries=0, cache_policy=NO_CACHE, persist_result=False)  # type: ignore[untyped-decorator]
def run_stage(name: str, work: Reproduction) -> Any:
    """Follow DVC through a stage and return the fields of its StageRun, or a failed state that carries the DvcError."""
    logger = get_run_logger()
    bar = ProgressArtifact(name, logger)
    start_s = time.monotonic()

    def on_line(line: str) -> None:
        if line.strip() and not line.strip().startswith(_HINTS):
            logger.info(line)
            bar.read(line)

    try:
        run = work.read_stage(name, on_line)
    except DvcError as error:
        return Failed(message=f"{error}: {_reason(error)}", data=error)
    logger.info("stage %s: %s in %.1f s", name, run.outcome, time.monotonic() - start_s)
    return {"outcome": run.outcome, "wall_s": run.wall_s}


@task(retries=0, cache_policy=NO_CACHE, persist_result=False)  # type: ignore[untyped-decorator]
def send_stage(pool: str, request: StageRequest) -> Any:
    """Have a worker of a pool bring one stage up to date; returns as `run_stage` does."""
    deployment = f"{STAGE_FLOW}/{pool}"
    name = f"{request.stage} for {request.origin.flow_run_id[:8]}"
    try:
        state = run_elsewhere(deployment, {"request": request.model_dump(mode="json")}, name)
    except ObjectNotFound:
        return Failed(
            message=f"gpu_pool: there is no deployment {deployment!r}; docs/team.md, GPU workers, says how to make it"
        )
    except UserError as error:
        return Failed(message=f"stage {request.stage} on pool {pool}: {error}")
    match = _DONE.fullmatch(state.message or "")
    if not state.is_completed() or match is None:
        return Failed(message=f"stage {request.stage} on pool {pool}: {state.name}: {state.message}")
    return {"outcome": match["outcome"], "wall_s": float(match["wall_s"])}


def _reason(error: DvcError) -> str:
    """Return the last line of the stage itself, which says more than DVC's own "failed to reproduce"."""
    told = [line for line in error.lines if line and not line.startswith(("ERROR: failed to reproduce", "> "))]
    return told[-1] if told else "it printed nothing"
