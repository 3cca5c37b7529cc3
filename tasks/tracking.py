"""What a stage tells MLflow: metrics, data sets, models and how it ended; kept on the disk and delivered from there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from minillm.config import Params
from minillm.digests import content_sha256
from minillm.params import read_yaml
from tasks import lineage
from tasks.delivery import Delivery, deliver_all, warn_away
from tasks.event_spool import Event, Spool, spools
from tasks.finals import recorded_finals
from tasks.mlflow_store import Store
from tasks.storage import now_ms
from tasks.tracking_store import experiment_tags, is_server, tracking_uri, without_secrets

_PARAMS_PATH = Path("params.yaml")
_GRAPH_PATH = Path("dvc.yaml")
_KILLED_PATIENCE_S = 2.0  # of a stage that was told to end

Point = tuple[str, float, int, int]  # name, value, milliseconds since 1970, step


class Tracker:
    """Records one stage; without a spool it only checks values. Losing MLflow never stops a stage and loses nothing."""

    def __init__(self, spool: Spool | None, logged_models: list[str]) -> None:
        self._spool = spool
        self._logged_models = logged_models
        self._last_step = 0

    def log(self, step: int, metrics: Mapping[str, float], time_ms: int | None = None) -> None:
        """Record `group/name` metrics of one step, made now or at a given time (milliseconds since 1970)."""
        points = checked_points(step, metrics, now_ms() if time_ms is None else time_ms)
        self._last_step = step
        if self._spool is not None:
            self._spool.add("metrics", run="child", points=points)

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Record final values on the stage's run, at its last step, and on its parent."""
        time_ms = now_ms()
        points = checked_points(self._last_step, metrics, time_ms)
        if self._spool is not None:
            self._spool.add("metrics", run="child", points=points)
            self._spool.add("metrics", run="parent", points=checked_points(0, metrics, time_ms))

    def dataset(self, name: str, path: Path) -> None:
        """Record a file or directory as a data set input, with its sha256 as digest."""
        if self._spool is not None:
            self._spool.add("dataset", name=name, path=path.as_posix(), sha256=content_sha256(path))

    def model(self, name: str, directory: Path) -> None:
        """Record a model directory of safetensors, when params select it."""
        if self._spool is not None and name in self._logged_models:
            content = {"path": directory.as_posix(), "sha256": content_sha256(directory), "step": self._last_step}
            self._spool.add("model", name=name, tags=lineage.tags(), **content)

    def artifact(self, path: Path) -> None:
        """Record a file."""
        if self._spool is not None:
            self._spool.keep("child", path)

    def tag(self, name: str, value: str) -> None:
        """Record a word about the stage's run."""
        if self._spool is not None:
            self._spool.add("tags", run="child", tags={name: value})


@contextmanager
def open_tracker(stage: str, params: Params) -> Iterator[Tracker]:
    """Yield the tracker of one stage run and close it as finished, failed or killed."""
    logged_models: list[str] = [*params.tracking.logged_models]
    if not params.tracking.enabled:
        yield Tracker(None, logged_models)
        return
    spool, delivery = _stage_spool(stage, params), Delivery(params.tracking)
    delivery.start()
    try:
        yield Tracker(spool, logged_models)
    except Exception:
        _close(spool, stage, "FAILED")
        delivery.finish()
        raise
    except BaseException:
        _close(spool, stage, "KILLED")
        delivery.finish(_KILLED_PATIENCE_S)
        raise
    _close(spool, stage, "FINISHED")
    delivery.finish()


def tracking_hint(params: Params) -> str:
    """Return where a reader finds the runs."""
    uri = tracking_uri(params.tracking)
    if not params.tracking.enabled:
        return "MLflow is off (params.yaml: tracking.enabled)"
    place = without_secrets(uri) if is_server(uri) else "make ui, then http://127.0.0.1:5000"
    return f"{place} (experiment {params.tracking.experiment})"


def finish_pipeline(params: Params, cached: Iterable[str]) -> None:
    """Record on the parent run what no stage can: the final dvc.lock, and the stages that DVC did not have to run."""
    if not params.tracking.enabled:
        return
    outcomes = dict.fromkeys(cached, "cached")
    spool = Spool(_header(params, None))
    _add_lock(spool)
    spool.add("metrics", run="parent", points=checked_points(0, recorded_finals(outcomes), now_ms()))
    spool.add("end", status="FINISHED", time_ms=now_ms(), outcomes=outcomes)
    spool.close()
    sync_records(params)


def record_student(params: Params, student: Event) -> Path:
    """Record a student for the registry and return the spool, which goes when it has been delivered."""
    spool = Spool(_header(params, None))
    time_ms = now_ms()
    spool.add("student", **student, time_ms=time_ms)
    spool.add("end", status="FINISHED", time_ms=time_ms, outcomes={})
    spool.close()
    return spool.directory


def sync_records(params: Params) -> int:
    """Deliver all records that wait for MLflow and return of how many runs some still wait; a warning says why."""
    store = Store(params.tracking)
    try:
        return deliver_all(store)
    except Exception as error:
        warn_away(store.uri, error)
        return len(spools())


def checked_points(step: int, metrics: Mapping[str, float], time_ms: int) -> list[Point]:
    """Return the points of one step; raises ValueError for NaN and infinity (MLflow stores 1.8e308)."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise ValueError(f"metric {name} is {value} at step {step}; a finite number is needed")
    return [(name, float(value), time_ms, step) for name, value in metrics.items()]


def _stage_spool(stage: str, params: Params) -> Spool:
    sections = {name.partition(".")[0] for name in read_yaml(_GRAPH_PATH)["stages"][stage]["params"]}
    tags = {"kind": "stage", "dvc.stage": stage, "process": lineage.process_mark(), **lineage.tags()}
    params_of_stage = lineage.flattened(params.model_dump(mode="json", include=sections))
    spool = Spool(_header(params, {"name": stage, "tags": tags, "params": _shown(params_of_stage)}))
    for path in (_PARAMS_PATH, _GRAPH_PATH):
        spool.keep("parent", path)
    _add_lock(spool)
    return spool


def _header(params: Params, stage: Event | None) -> Event:
    """Return the first record: the pipeline's run, that of the stage, and the process that writes."""
    key, time_ms = lineage.pipeline_key(), now_ms()
    tags = {"kind": "pipeline", "pipeline.key": key, **experiment_tags()}
    tags = {**lineage.tags(), **tags, "mlflow.source.name": str(_GRAPH_PATH)}
    everything = _shown(lineage.flattened(params.model_dump(mode="json")))
    name = tags.get("dvc.experiment", f"pipeline {key.partition('-')[0]}")
    return {
        "kind": "header",
        "process": lineage.process_mark(),
        "experiment": params.tracking.experiment,
        "pipeline": {"key": key, "name": name, "tags": tags, "params": everything, "time_ms": time_ms},
        "stage": stage and {**stage, "time_ms": time_ms},
    }


def _shown(params: Mapping[str, str]) -> dict[str, str]:
    return {name: without_secrets(value) for name, value in params.items()}


def _add_lock(spool: Spool) -> None:
    md5 = lineage.file_md5(lineage.LOCK_PATH)
    if md5:
        spool.keep("parent", lineage.LOCK_PATH)
        spool.add("tags", run="parent", tags={"dvc.lock.md5": md5})


def _close(spool: Spool, stage: str, status: str) -> None:
    spool.add("end", status=status, time_ms=now_ms(), outcomes={stage: status.lower()})
    spool.close()
