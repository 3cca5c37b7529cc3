"""Which MLflow store is written to, how long a stage waits for it, and the name of a run; without mlflow."""

from __future__ import annotations

import os
import re
from pathlib import Path

from minillm.config import TrackingConfig
from tasks.event_spool import beside_spools
from tasks.storage import STATE_DIR

RUN_NAME_VARIABLE = "MINILLM_RUN_NAME"
EXPERIMENT_TAG = "dvc.experiment"
STORE_VARIABLE = "MLFLOW_TRACKING_URI"
_SQLITE = "sqlite:///"
# A server that is down costs one call at most 2 x 4 s; MLflow's own defaults wait 246 s.
_CLIENT_SETTINGS = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
}


def tracking_uri(config: TrackingConfig) -> str:
    """Return the store: MLflow's own variable wins, so that a worker elsewhere needs no edited params.yaml."""
    return os.environ.get(STORE_VARIABLE) or config.uri


def experiment_tags() -> dict[str, str]:
    """Return the tag with the DVC experiment that a pipeline runs for; none when it runs for none."""
    name = os.environ.get(RUN_NAME_VARIABLE)
    return {EXPERIMENT_TAG: name} if name else {}


def shared_uri(config: TrackingConfig, directory: Path) -> str:
    """Return the store of a directory as a process that works in another one names it."""
    return absolute_uri(tracking_uri(config), directory)


def absolute_uri(uri: str, directory: Path) -> str:
    """Return a store that a directory names, as every other directory names it too."""
    path = uri.removeprefix(_SQLITE)
    return _SQLITE + (directory / path).resolve().as_posix() if uri.startswith(_SQLITE) else uri


def artifacts_dir(uri: str) -> Path:
    """Return where artifacts lie when no server keeps them: beside the file of the store."""
    path = uri.removeprefix(_SQLITE)
    return (Path(path).parent if uri.startswith(_SQLITE) else Path()).resolve() / "mlartifacts"


def start_lock_path(uri: str) -> Path:
    """Return the file that those who may create a store lock: two who create one together break its migration.

    It also guards the search for a run before it is made; those who share spools share it, a server's too.
    """
    name = "mlflow.lock"
    return artifacts_dir(uri).parent / STATE_DIR / name if uri.startswith(_SQLITE) else beside_spools(name)


def is_server(uri: str) -> bool:
    """Return whether a store is a server, which then decides where artifacts lie."""
    return uri.startswith(("http://", "https://"))


def make_client_hurry() -> None:
    """Let MLflow's client give up soon, print and report nothing, unless the environment says otherwise."""
    for name, value in _CLIENT_SETTINGS.items():
        os.environ.setdefault(name, value)


def without_secrets(text: str) -> str:
    """Return a text with the user and password of every address in it struck out."""
    return re.sub(r"://[^\s'\"]*@", "://***@", text)
