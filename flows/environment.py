"""The environment of every process that the flows start: this interpreter first on PATH, telemetry and pickles off."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from minillm.config import TrackingConfig
from minillm.errors import UserError
from tasks.tracking_store import is_server, tracking_uri, without_secrets

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
}
# Nothing here loads a model through MLflow; should a library do so on the way, MLflow refuses to unpickle.
NO_PICKLES = {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
# Without a server Prefect would start an "ephemeral" one, which prints tracebacks when it stops.
PREFECT_CLIENT = {
    "PREFECT_SERVER_EPHEMERAL_ENABLED": "false",
    "PREFECT_CLI_PROMPT": "false",
}
LASTING_PAGES_VARIABLE = "MINILLM_PREFECT_PAGES"  # where a run is shown when its own server has gone
_DEFAULT_MLFLOW_PORT = 5000
_DEFAULT_PREFECT_PORT = 4200
_MAX_PORT = 65535


def child_environment(extra: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a child process: ours, telemetry and pickles off, `extra` on top.

    `python` in dvc.yaml is found on PATH, so this interpreter's directory comes first. DVC runs commands in $SHELL; a
    user's fish or zsh must not decide how a stage is started.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    fixed = {"PATH": path, "PYTHONUNBUFFERED": "1", "SHELL": "/bin/sh"}
    return {**os.environ, **TELEMETRY_OFF, **NO_PICKLES, **fixed, **extra}


def mlflow_url(tracking: TrackingConfig) -> str:
    """Return where MLflow's pages are: the tracking server itself, or what `make ui` starts for a local store."""
    uri = tracking_uri(tracking)
    return without_secrets(uri) if is_server(uri) else _local_url("MLFLOW_PORT", _DEFAULT_MLFLOW_PORT)


def prefect_url() -> str:
    """Return where `make ui` starts Prefect."""
    return _local_url("PREFECT_PORT", _DEFAULT_PREFECT_PORT)


def _local_url(variable: str, default: int) -> str:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or not 1 <= int(text) <= _MAX_PORT:
        raise UserError(f"{variable}: a port from 1 to {_MAX_PORT} is needed (got {text!r})")
    return f"http://127.0.0.1:{int(text)}"
