"""What a record means in MLflow: one parent run per pipeline, one child run per stage.

Every record can be delivered twice and counts once: a run is found by its spool's name before it is made, and MLflow
keeps one of two points that are equal in value, step and time.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock

from minillm.config import TrackingConfig
from minillm.digests import content_sha256
from tasks.event_spool import Event
from tasks.registry_store import Registry
from tasks.tracking_store import (
    EXPERIMENT_TAG,
    artifacts_dir,
    is_server,
    make_client_hurry,
    shared_uri,
    start_lock_path,
)

_log = logging.getLogger(__name__)

_START_LOCK_TIMEOUT_S = 60
_NUM_CONNECT_ATTEMPTS = 3  # of a database; MLflow's own 10 wait 100 s
_BATCH_PARAMS = 100  # MLflow's limit of one request
_DIGEST_LENGTH = 36  # of a data set, MLflow's limit
_GONE = "RESOURCE_DOES_NOT_EXIST"
_REFUSALS = {_GONE, "INVALID_PARAMETER_VALUE"}  # the latter also for what is deleted


@dataclass(frozen=True)
class PipelineRun:
    """The run of a pipeline."""

    run_id: str
    experiment_id: str
    name: str  # of its DVC experiment, or one made from its key
    key: str  # of its Prefect flow run, when it has one
    distill_run_id: str  # empty when that stage came from the cache


class Store:
    """The MLflow store of the params; reached when the first record needs it. Its methods raise what MLflow raises."""

    def __init__(self, config: TrackingConfig) -> None:
        self.uri = shared_uri(config, Path())

    @cached_property
    def _client(self) -> Any:
        return _connect(self.uri)

    def open(self, header: Event, spool: Path) -> dict[str, str]:
        """Return the ids of a spool's runs: experiment, parent and, for that of a stage, child."""
        lock_path = start_lock_path(self.uri)
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock_path, timeout=_START_LOCK_TIMEOUT_S):
            experiment = self._experiment_id(header["experiment"])
            parent = self._parent_id(experiment, header["pipeline"])
            ids = {"experiment": experiment, "parent": parent}
            if header["stage"] is None:
                return ids
            return ids | {"child": self._child_id(experiment, parent, spool.name, header)}

    def registry(self, model: str, metric: str) -> Registry:
        """Return the registered model, whose versions are compared by a metric."""
        return Registry(self._client, model, metric)

    def pipelines(self, experiment: str) -> list[PipelineRun]:
        """Return the runs of pipelines, the newest first; none when there is no such experiment."""
        found = self._client.get_experiment_by_name(experiment)
        runs = self._client.search_runs([found.experiment_id], "tags.kind = 'pipeline'") if found else []
        return [_pipeline_run(run) for run in runs]

    def deliver(self, event: Event, ids: Mapping[str, str], spool: Path) -> None:
        """Do what one record says."""
        actions: dict[str, Callable[..., None]] = {
            "metrics": self._metrics,
            "file": self._file,
            "tags": self._tags,
            "dataset": self._dataset,
            "model": self._model,
            "student": self._student,
            "end": self._end,
        }
        content = {name: value for name, value in event.items() if name != "kind"}
        actions[event["kind"]](ids, spool, **content)

    def has_refused(self, error: Exception) -> bool:
        """Return whether an error is this store's answer to one record; a store that is away gives none."""
        from mlflow.exceptions import MlflowException

        return isinstance(error, MlflowException) and error.error_code in _REFUSALS

    def deleted(self, experiment: str, ids: Mapping[str, str]) -> Set[str]:
        """Return which of a spool's ids are of something deleted; `experiment` alone when it has no ids yet."""
        if not ids:
            found = self._client.get_experiment_by_name(experiment)
            return {"experiment"} if found and found.lifecycle_stage == "deleted" else set()
        is_there = {name: self._has_run(ids[name]) for name in ids.keys() - {"experiment"}}
        return {name for name in is_there if not is_there[name]}

    def _has_run(self, run_id: str) -> bool:
        """Return whether a run is there; those of a deleted experiment are deleted with it."""
        try:
            return bool(self._client.get_run(run_id).info.lifecycle_stage == "active")
        except Exception as error:
            if self.has_refused(error):
                return False
            raise

    def _experiment_id(self, name: str) -> str:
        """Return the experiment, made when missing; without a server its artifacts lie in this repository."""
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        location = None if is_server(self.uri) else str(artifacts_dir(self.uri) / name)
        return str(self._client.create_experiment(name, artifact_location=location))

    def _parent_id(self, experiment: str, pipeline: Event) -> str:
        condition = f"tags.kind = 'pipeline' and tags.`pipeline.key` = '{pipeline['key']}'"
        return self._found_or_made(experiment, condition, pipeline)

    def _child_id(self, experiment: str, parent: str, spool: str, header: Event) -> str:
        stage = header["stage"]
        tags = {**stage["tags"], "mlflow.parentRunId": parent, "spool": spool}
        # Curves of several experiments are told apart by the names of their runs.
        shown = f"{stage['name']} {header['pipeline']['tags'].get(EXPERIMENT_TAG, '')}".strip()
        child = self._found_or_made(experiment, f"tags.spool = '{spool}'", {**stage, "name": shown, "tags": tags})
        self._client.update_run(parent, status="RUNNING")
        name = stage["name"]
        _set_tags(self._client, parent, {f"stage.{name}.run_id": child, f"stage.{name}.outcome": "running"})
        return child

    def _found_or_made(self, experiment: str, condition: str, run: Event) -> str:
        """Return a run with its parameters; those of a run that was there are not changed, which MLflow refuses."""
        found = next(iter(self._client.search_runs([experiment], condition, max_results=1)), None)
        there = found or self._client.create_run(experiment, run["time_ms"], run_name=run["name"], tags=run["tags"])
        missing = {name: value for name, value in run["params"].items() if name not in there.data.params}
        _log_params(self._client, there.info.run_id, missing)
        return str(there.info.run_id)

    def _metrics(self, ids: Mapping[str, str], spool: Path, run: str, points: list[Any]) -> None:
        from mlflow.entities import Metric

        self._client.log_batch(ids[run], metrics=[Metric(*point) for point in points])

    def _file(self, ids: Mapping[str, str], spool: Path, run: str, name: str) -> None:
        self._client.log_artifact(ids[run], str(spool / name))

    def _tags(self, ids: Mapping[str, str], spool: Path, run: str, tags: dict[str, str]) -> None:
        _set_tags(self._client, ids[run], tags)

    def _dataset(self, ids: Mapping[str, str], spool: Path, name: str, path: str, sha256: str) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps({"uri": path, "sha256": sha256})
        dataset = Dataset(name, sha256[:_DIGEST_LENGTH], source_type="local", source=source)
        self._client.log_inputs(ids["child"], [DatasetInput(dataset, tags=[InputTag("mlflow.data.context", name)])])

    def _model(
        self, ids: Mapping[str, str], spool: Path, name: str, path: str, sha256: str, step: int, tags: dict[str, str]
    ) -> None:
        """Copy a model directory as it is: MLflow's flavors would load it by unpickling or by running its code."""
        from mlflow.entities import LoggedModelOutput

        if not Path(path).exists() or content_sha256(Path(path)) != sha256:
            _log.warning("tracking: %s is not the model of that run any more; MLflow gets its sha256 alone", path)
            _set_tags(self._client, ids["child"], {f"model.{name}.sha256": sha256})
            return
        condition = f"name = '{name}' AND source_run_id = '{ids['child']}'"
        found = self._client.search_logged_models([ids["experiment"]], condition)
        model = next(iter(found), None) or self._client.create_logged_model(
            ids["experiment"], name=name, source_run_id=ids["child"], model_type="causal-lm", tags=tags
        )
        self._client.log_model_artifacts(model.model_id, path)
        self._client.finalize_logged_model(model.model_id, "READY")
        outputs = self._client.get_run(ids["child"]).outputs
        if model.model_id not in [output.model_id for output in (outputs.model_outputs if outputs else ())]:
            self._client.log_outputs(ids["child"], [LoggedModelOutput(model.model_id, step)])

    def _student(self, ids: Mapping[str, str], spool: Path, model: str, metric: str, **student: Any) -> None:
        self.registry(model, metric).register(ids, student)

    def _end(self, ids: Mapping[str, str], spool: Path, status: str, time_ms: int, outcomes: dict[str, str]) -> None:
        """Close the stage's run, note outcomes that the parent has none of yet, and set the parent's status by all."""
        is_new = "child" in ids
        if is_new:
            self._client.set_terminated(ids["child"], status, time_ms)
        if "parent" not in ids:
            return
        recorded = self._client.get_run(ids["parent"]).data.tags
        tags = {f"stage.{stage}.outcome": outcome for stage, outcome in outcomes.items()}
        new = {name: tags[name] for name in tags if is_new or recorded.get(name, "running") == "running"}
        _set_tags(self._client, ids["parent"], new)
        self._set_status(ids["parent"], time_ms)

    def _set_status(self, parent: str, time_ms: int) -> None:
        tags = self._client.get_run(parent).data.tags
        outcomes = {value for name, value in tags.items() if name.startswith("stage.") and name.endswith(".outcome")}
        if outcomes & {"failed", "killed"}:
            self._client.set_terminated(parent, "FAILED", time_ms)
        elif "running" not in outcomes:
            self._client.set_terminated(parent, "FINISHED", time_ms)


def _pipeline_run(run: Any) -> PipelineRun:
    info, tags = run.info, run.data.tags
    distill = tags.get("stage.distill.run_id", "")
    return PipelineRun(info.run_id, info.experiment_id, info.run_name, tags["pipeline.key"], distill)


def _connect(uri: str) -> Any:
    """Return an MLflow client that gives up soon and says little."""
    make_client_hurry()
    from mlflow.store.db import utils as database
    from mlflow.tracking import MlflowClient

    database.MAX_RETRY_COUNT = _NUM_CONNECT_ATTEMPTS
    for noisy in ("mlflow", "alembic", "urllib3.connectionpool"):  # their errors come as exceptions, which are reported
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    return MlflowClient(tracking_uri=uri)


def _set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _log_params(client: Any, run_id: str, content: Mapping[str, str]) -> None:
    from mlflow.entities import Param

    flat = [Param(name, value) for name, value in content.items()]
    for start in range(0, len(flat), _BATCH_PARAMS):
        client.log_batch(run_id, params=flat[start : start + _BATCH_PARAMS])
