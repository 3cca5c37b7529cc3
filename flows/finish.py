"""Tell MLflow how a pipeline ended and which student it made; no stage can know it, as DVC writes dvc.lock after it."""

from __future__ import annotations

import os
from collections.abc import Mapping

from flows.dvc_process import StageRun
from minillm.config import Params
from tasks.event_spool import spools
from tasks.registry import register_student
from tasks.tracking import finish_pipeline, sync_records


def record_outcomes(params: Params, runs: Mapping[str, StageRun], environment: Mapping[str, str]) -> None:
    """Record the final dvc.lock and the stages that did not run, and deliver what earlier runs could not.

    A pipeline of which nothing ran leaves no trace.
    """
    if any(run.outcome == "ran" for run in runs.values()):
        os.environ.update(environment)
        finish_pipeline(params, cached=[name for name, run in runs.items() if run.outcome != "ran"])
    elif params.tracking.enabled and spools():
        sync_records(params)


def registry_line(params: Params, environment: Mapping[str, str]) -> str:
    """Register the student of a pipeline whose outcomes were recorded; return what to print, empty without news."""
    os.environ.update(environment)
    decision = register_student(params)
    return decision.line if decision else ""
