"""Registers the student at hand in MLflow's registry, through the records on the disk, and says what became of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from minillm.config import Params, TrackingConfig
from minillm.digests import digest
from minillm.errors import UserError
from tasks import lineage
from tasks.mlflow_store import Store
from tasks.promotion import Decision
from tasks.registry_store import CANDIDATE, Registry
from tasks.storage import STATE_DIR, STUDENT_DIR
from tasks.student_record import Student, recorded_student
from tasks.tracking import record_student, sync_records
from tasks.tracking_store import experiment_tags, tracking_uri, without_secrets

_RECORDED_DIR = STATE_DIR / "registered"  # an empty file for each student, evaluation and store
_ORIGIN = ("mlflow.source.git.commit", "prefect.flow_run_id")
_NO_KNOBS_OF_IT = {"tracking", "checkpoint"}


def register_student(params: Params) -> Decision | None:
    """Register the student of dvc.lock, if it is new or newly judged, and return what was decided.

    None when there is nothing new, no registry, or MLflow is away: then the record waits for the next delivery. Raises
    UserError for metrics that cannot be read.
    """
    if not params.tracking.enabled or not params.tracking.registered_model:
        return None
    student = recorded_student()
    if student is None or (mark := _mark(params.tracking, student)).exists():
        return None
    spool = record_student(params, _content(params, student))
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    sync_records(params)
    return None if spool.exists() else _registry(params.tracking).decision(student.md5)


def promote(params: Params, version: int | None) -> str:
    """Make a version, the newest when none is given, @champion by hand and return a line that says so.

    A registry that has lost its versions gets the student at hand again. Raises UserError when there is no such
    version, its files are lost, or MLflow is away.
    """
    config = params.tracking
    if not config.enabled or not config.registered_model:
        raise UserError("there is no registry (params.yaml: tracking.enabled, tracking.registered_model)")
    registry = _registry(config)
    try:
        number = version or registry.number(CANDIDATE) or _registered_again(params, registry)
        if number is None:
            raise UserError(f"{config.registered_model} has no version yet; `minillm run` makes one")
        registry.promote(number)
    except UserError:
        raise
    except Exception as error:
        place = without_secrets(tracking_uri(config))
        raise UserError(f"MLflow at {place}: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    return f"registry: {config.registered_model} version {number} is @champion: promoted by hand"


def _registry(config: TrackingConfig) -> Registry:
    return Store(config).registry(config.registered_model, config.champion_metric)


def _content(params: Params, student: Student) -> dict[str, object]:
    knobs = digest(params.model_dump(mode="json", exclude=_NO_KNOBS_OF_IT)).hex()
    path = STUDENT_DIR.as_posix()
    origin = {name: value for name, value in lineage.tags().items() if name in _ORIGIN}
    return {
        **asdict(student),
        "model": params.tracking.registered_model,
        "metric": params.tracking.champion_metric,
        "path": path,
        "tags": {**origin, **experiment_tags(), "dvc.path": path, "params.sha256": knobs},
    }


def _registered_again(params: Params, registry: Registry) -> int | None:
    """Register the student at hand, also one that a registry had which is lost, and return the newest version."""
    if student := recorded_student():
        _mark(params.tracking, student).unlink(missing_ok=True)
    register_student(params)
    return registry.number(CANDIDATE)


def _mark(config: TrackingConfig, student: Student) -> Path:
    """Return the file that says that a student was recorded: a run with no news asks MLflow nothing."""
    store = without_secrets(tracking_uri(config))
    identity = digest([store, config.registered_model, config.champion_metric, asdict(student)]).hex()
    return _RECORDED_DIR / identity
