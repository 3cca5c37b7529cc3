"""Tell MLflow how a pipeline ended and which student it made; no stage can know it, as DVC writes dvc.lock after it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from flows.environment import mlflow_url
from flows.reproduction import StageRun
from minillm.config import Params
from minillm.errors import UserError
from tasks.event_spool import spools
from tasks.pages import run_page
from tasks.registry import register_student
from tasks.tracking import finish_pipeline, sync_records


def record_outcomes(params: Params, runs: Mapping[str, StageRun], environment: Mapping[str, str]) -> None:
    """Record the final dvc.lock and the stages that did not run, and deliver what earlier runs could not.

    A pipeline of which nothing ran leaves no trace.
    """
    if any(run.outcome == "ran" for run in runs.values()):
        with _told(environment):
            finish_pipeline(params, cached=[name for name, run in runs.items() if run.outcome != "ran"])
    elif params.tracking.enabled and spools():
        sync_records(params)


def registry_line(params: Params, environment: Mapping[str, str]) -> str:
    """Register the student of a pipeline whose outcomes were recorded; return what to print, empty without news."""
    with _told(environment):
        decision = register_student(params)
    return decision.line if decision else ""


def mlflow_run_page(params: Params, environment: Mapping[str, str], key: str) -> str:
    """Return the page of a pipeline's run in MLflow, or where its pages start when it has none."""
    pages = mlflow_url(params.tracking)
    if not params.tracking.enabled:  # asking would make a store
        return pages
    try:
        with _told(environment):
            return run_page(pages, params.tracking, key)
    except UserError:
        return pages


@contextmanager
def _told(environment: Mapping[str, str]) -> Iterator[None]:
    """Set variables in the block."""
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
