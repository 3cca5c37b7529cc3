"""A directory with the pipeline's files and an empty real MLflow store, and what that store holds afterwards."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from minillm.config import Params
from minillm.params import load_params
from tests.imports import ROOT


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database: to make one takes a second, to copy it nothing."""
    from mlflow.tracking import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty_store: Path) -> Params:
    """The repository's params, in a directory that has the pipeline's files and key and an empty store."""
    shutil.copy(empty_store, tmp_path)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "dvc.lock").write_text("schema: '2.0'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINILLM_PIPELINE_KEY", "key-1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("MLFLOW_TRACKING_URI", "MINILLM_PREFECT_FLOW_RUN_ID", "MINILLM_PREFECT_URL"):
        monkeypatch.delenv(name, raising=False)
    text = (tmp_path / "params.yaml").read_text()
    # MLflow keeps one store per URI and process, so that a relative one would stay in the first test's directory.
    (tmp_path / "params.yaml").write_text(text.replace("sqlite:///mlflow.db", f"sqlite:///{tmp_path}/mlflow.db"))
    return load_params(Path("params.yaml"))


def client() -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{Path.cwd()}/mlflow.db")


def runs(kind: str) -> list[Any]:
    """Return the runs of a kind, the oldest first; none before the store has any."""
    experiment = client().get_experiment_by_name("minillm")
    if experiment is None:
        return []
    found = client().search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")
    return sorted(found, key=lambda run: run.info.start_time)


def history(run: Any, metric: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client().get_metric_history(run.info.run_id, metric)]


def with_tracking(params: Params, **changes: Any) -> Params:
    return params.model_copy(update={"tracking": params.tracking.model_copy(update=changes)})
