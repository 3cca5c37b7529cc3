"""MLflow: one parent run per pipeline, one child run per stage; the only file that imports mlflow."""

from __future__ import annotations

import json
import logging
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from minillm.config import Params, TrackingConfig
from minillm.digests import content_sha256
from minillm.params import read_yaml
from tasks import lineage
from tasks.metric_buffer import MetricBuffer, Point, checked_points
from tasks.tracking_store import experiment_tags, is_server, make_client_hurry, tracking_uri, without_secrets

logger = logging.getLogger(__name__)

_PARAMS_PATH = Path("params.yaml")
_GRAPH_PATH = Path("dvc.yaml")
_ARTIFACTS_DIR = Path("mlartifacts")
# Two processes that create one sqlite store together break each other's migration.
_START_LOCK_PATH = Path("state/mlflow.lock")
_START_LOCK_TIMEOUT_S = 60
_NUM_CONNECT_ATTEMPTS = 3  # of a database; MLflow's own 10 wait 100 s
_MAX_WARNING_LENGTH = 400
_BATCH_PARAMS = 100  # MLflow's limit of one request
_DIGEST_LENGTH = 36  # of a data set, MLflow's limit


@dataclass
class _Link:
    """The runs of one stage in MLflow; after a failure it is down and tries nothing."""

    uri: str
    client: Any
    experiment_id: str
    parent_id: str
    child_id: str
    is_up: bool = True
    has_warned: bool = False

    def attempt(self, action: Callable[..., object], *arguments: Any) -> bool:
        """Return whether the action was done; a failure is one warning in the life of the link."""
        if self.is_up:
            try:
                action(*arguments)
            except Exception as error:
                if not self.has_warned:
                    _warn(self.uri, error)
                self.is_up, self.has_warned = False, True
        return self.is_up

    def deliver(self, run_id: str, points: list[Point]) -> bool:
        """Return whether metrics were stored."""
        return self.attempt(_log_points, self.client, run_id, points)


class Tracker:
    """Records one stage; losing MLflow stops the recording, never the stage. Without a link it only checks values."""

    def __init__(self, link: _Link | None, logged_models: list[str]) -> None:
        self._link = link
        self._logged_models = logged_models
        self._buffer = MetricBuffer()
        self._last_step = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record `group/name` metrics of one step; they are sent every few steps or seconds, and at the end."""
        points = checked_points(step, metrics)
        self._last_step = step
        if self._link is not None:
            self._buffer.add(self._link.child_id, points)
            if self._buffer.is_due():
                self._buffer.send(self._link.deliver)

    def summary(self, metrics: Mapping[str, float]) -> None:
        """Record final values on the stage's run, at its last step, and on its parent."""
        points = checked_points(self._last_step, metrics)
        if self._link is not None:
            self._buffer.add(self._link.child_id, points)
            self._buffer.add(self._link.parent_id, checked_points(0, metrics))
            self._buffer.send(self._link.deliver)

    def dataset(self, name: str, path: Path) -> None:
        """Record a file or directory as a data set input, with its sha256 as digest."""
        if self._link is not None and self._link.is_up:
            self._link.attempt(_log_dataset, self._link, name, path, content_sha256(path))

    def model(self, name: str, directory: Path) -> None:
        """Record a model directory of safetensors, when params select it."""
        if self._link is not None and name in self._logged_models:
            self._link.attempt(_log_model, self._link, name, directory, self._last_step)

    def artifact(self, path: Path) -> None:
        """Record a file."""
        if self._link is not None:
            self._link.attempt(self._link.client.log_artifact, self._link.child_id, str(path))

    def close(self, stage: str, status: str) -> None:
        """Send what is left and end the stage's run.

        A link that was lost gets its one second chance here: points carry the time when they were made, so MLflow
        keeps one of two equal ones.
        """
        if self._link is None:
            return
        was_up, self._link.is_up = self._link.is_up, True
        self._buffer.send(self._link.deliver)
        is_closed = self._link.attempt(_close_stage, self._link, stage, status)
        if is_closed and not was_up:
            logger.info("tracking: %s is back; the metrics of this stage are complete", self._link.uri)


@contextmanager
def open_tracker(stage: str, params: Params) -> Iterator[Tracker]:
    """Yield the tracker of one stage run and close it as finished, failed or killed."""
    tracker = Tracker(_open_link(stage, params) if params.tracking.enabled else None, [*params.tracking.logged_models])
    try:
        yield tracker
    except BaseException as error:
        tracker.close(stage, "FAILED" if isinstance(error, Exception) else "KILLED")
        raise
    tracker.close(stage, "FINISHED")


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
    try:
        client, _, parent_id = _open_pipeline(params)
        recorded = client.get_run(parent_id).data.tags
        names = [f"stage.{stage}.outcome" for stage in cached]
        _set_tags(client, parent_id, {name: "cached" for name in names if name not in recorded})
        _log_lock(client, parent_id)
        _set_status(client, parent_id)
    except Exception as error:
        _warn(tracking_uri(params.tracking), error)


def _open_link(stage: str, params: Params) -> _Link | None:
    sections = {name.partition(".")[0] for name in read_yaml(_GRAPH_PATH)["stages"][stage]["params"]}
    try:
        return _start_runs(stage, params, sections)
    except Exception as error:
        _warn(tracking_uri(params.tracking), error)
        return None


def _start_runs(stage: str, params: Params, sections: set[str]) -> _Link:
    """Return the link to a new child run under the pipeline's parent run."""
    client, experiment_id, parent_id = _open_pipeline(params)
    tags = {"kind": "stage", "dvc.stage": stage, "mlflow.parentRunId": parent_id, "process": lineage.process_mark()}
    child_id = client.create_run(experiment_id, run_name=stage, tags=tags | lineage.tags()).info.run_id
    client.update_run(parent_id, status="RUNNING")
    _set_tags(client, parent_id, {f"stage.{stage}.run_id": child_id, f"stage.{stage}.outcome": "running"})
    _log_params(client, child_id, params.model_dump(mode="json", include=sections))
    _log_lock(client, parent_id)
    return _Link(tracking_uri(params.tracking), client, experiment_id, parent_id, child_id)


def _open_pipeline(params: Params) -> tuple[Any, str, str]:
    """Return client, experiment and the pipeline's parent run, which is made when it is not there."""
    _START_LOCK_PATH.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(_START_LOCK_PATH, timeout=_START_LOCK_TIMEOUT_S):
        client = _connect(params.tracking)
        experiment_id = _experiment_id(client, params.tracking)
        _close_dead_runs(client, experiment_id)
        return client, experiment_id, _parent_id(client, experiment_id, params)


def _connect(config: TrackingConfig) -> Any:
    """Return an MLflow client that gives up soon and says little."""
    make_client_hurry()
    from mlflow.store.db import utils as database
    from mlflow.tracking import MlflowClient

    database.MAX_RETRY_COUNT = _NUM_CONNECT_ATTEMPTS
    for noisy in ("mlflow", "alembic", "urllib3.connectionpool"):  # their errors come as exceptions, which are reported
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=tracking_uri(config))


def _experiment_id(client: Any, config: TrackingConfig) -> str:
    """Return the experiment, made when missing; without a server its artifacts lie in this repository."""
    experiment = client.get_experiment_by_name(config.experiment)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = None if is_server(tracking_uri(config)) else str(_ARTIFACTS_DIR / config.experiment)
    return str(client.create_experiment(config.experiment, artifact_location=location))


def _parent_id(client: Any, experiment_id: str, params: Params) -> str:
    key = lineage.pipeline_key()
    condition = f"tags.kind = 'pipeline' and tags.`pipeline.key` = '{key}'"
    for run in client.search_runs([experiment_id], condition, max_results=1):
        return str(run.info.run_id)
    tags = lineage.tags() | {"kind": "pipeline", "pipeline.key": key, "mlflow.source.name": str(_GRAPH_PATH)}
    tags |= experiment_tags()
    name = tags.get("dvc.experiment", f"pipeline {key.partition('-')[0]}")
    run_id = str(client.create_run(experiment_id, run_name=name, tags=tags).info.run_id)
    _log_params(client, run_id, params.model_dump(mode="json"))
    for path in (_PARAMS_PATH, _GRAPH_PATH):
        client.log_artifact(run_id, str(path))
    return run_id


def _set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _log_lock(client: Any, run_id: str) -> None:
    digest = lineage.file_md5(lineage.LOCK_PATH)
    if digest:
        client.log_artifact(run_id, str(lineage.LOCK_PATH))
        _set_tags(client, run_id, {"dvc.lock.md5": digest})


def _log_params(client: Any, run_id: str, content: Mapping[str, Any]) -> None:
    from mlflow.entities import Param

    flat = [Param(name, without_secrets(value)) for name, value in lineage.flattened(content).items()]
    for start in range(0, len(flat), _BATCH_PARAMS):
        client.log_batch(run_id, params=flat[start : start + _BATCH_PARAMS])


def _log_points(client: Any, run_id: str, points: list[Point]) -> None:
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(*point) for point in points])


def _log_dataset(link: _Link, name: str, path: Path, digest: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    source = json.dumps({"uri": path.as_posix(), "sha256": digest})
    dataset = Dataset(name, digest[:_DIGEST_LENGTH], source_type="local", source=source)
    link.client.log_inputs(link.child_id, [DatasetInput(dataset, tags=[InputTag("mlflow.data.context", name)])])


def _log_model(link: _Link, name: str, directory: Path, step: int) -> None:
    """Copy a model directory as it is: MLflow's flavors would load it again by unpickling or by running its code."""
    from mlflow.entities import LoggedModelOutput

    model = link.client.create_logged_model(
        link.experiment_id, name=name, source_run_id=link.child_id, model_type="causal-lm", tags=lineage.tags()
    )
    link.client.log_model_artifacts(model.model_id, str(directory))
    link.client.finalize_logged_model(model.model_id, "READY")
    link.client.log_outputs(link.child_id, [LoggedModelOutput(model.model_id, step)])


def _close_stage(link: _Link, stage: str, status: str) -> None:
    link.client.set_terminated(link.child_id, status)
    _set_tags(link.client, link.parent_id, {f"stage.{stage}.outcome": status.lower()})
    _set_status(link.client, link.parent_id)


def _set_status(client: Any, parent_id: str) -> None:
    """Set a parent's status from the last outcome of each of its stages."""
    tags = client.get_run(parent_id).data.tags
    outcomes = {value for name, value in tags.items() if name.startswith("stage.") and name.endswith(".outcome")}
    if outcomes & {"failed", "killed"}:
        client.set_terminated(parent_id, "FAILED")
    elif "running" not in outcomes:
        client.set_terminated(parent_id, "FINISHED")


def _close_dead_runs(client: Any, experiment_id: str) -> None:
    """Close the stage runs whose process was killed on this host: it could not do so itself."""
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING' and tags.kind = 'stage'"):
        tags = run.data.tags
        if lineage.is_dead(tags.get("process", "")):
            client.set_terminated(run.info.run_id, "KILLED")
            _set_tags(client, tags["mlflow.parentRunId"], {f"stage.{tags['dvc.stage']}.outcome": "killed"})
            _set_status(client, tags["mlflow.parentRunId"])


def _warn(uri: str, error: Exception) -> None:
    text = without_secrets(" ".join(f"{uri} ({type(error).__name__}: {error})".split()))
    logger.warning("tracking: no more records go to MLflow at %s", textwrap.shorten(text, _MAX_WARNING_LENGTH))
