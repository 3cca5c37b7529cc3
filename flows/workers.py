"""The team's workers: processes that wait for runs in one of Prefect's work pools and run them in this repository."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping

from flows.environment import PREFECT_CLIENT
from flows.guarded_prefect import LOOPBACK_HOST
from flows.servers import SERVERS_DIR, Server, free_port

POOLS = ("cpu", "gpu")
HEARTBEAT_S = 30  # the least that Prefect allows; see flows/automations.py for what follows from a missing one
_QUERY_S = 3  # between two questions for runs; Prefect's 10 s are felt by who has just pressed Submit
_NVIDIA_TIMEOUT_S = 20
_DEVICES_VARIABLE = "CUDA_VISIBLE_DEVICES"


def prefect_client(prefect_page: str) -> dict[str, str]:
    """Return the variables that connect a process to the Prefect server of this repository."""
    home = str((SERVERS_DIR / "prefect").resolve())
    return {**PREFECT_CLIENT, "PREFECT_API_URL": f"{prefect_page}/api", "PREFECT_HOME": home}


def worker(pool: str, client: Mapping[str, str], store_uri: str) -> Server:
    """Return the worker of a pool. It is well when it asks the server for runs."""
    url = f"http://{LOOPBACK_HOST}:{free_port()}"
    environment = {
        **client,
        "MLFLOW_TRACKING_URI": store_uri,
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S),
        "PREFECT_WORKER_QUERY_SECONDS": str(_QUERY_S),
        "PREFECT_WORKER_WEBSERVER_HOST": LOOPBACK_HOST,
        "PREFECT_WORKER_WEBSERVER_PORT": url.rpartition(":")[2],
        **(_first_device() if pool == "gpu" else {}),
    }
    options = ["--pool", pool, "--type", "process", "--name", f"{pool}-{os.uname().nodename}", "--with-healthcheck"]
    return Server(
        f"worker-{pool}", url, "/health", [sys.executable, "-m", "prefect", "worker", "start", *options], environment
    )


def gpu_names() -> list[str]:
    """Return the GPUs of this machine, as NVIDIA's driver names them."""
    try:
        done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=_NVIDIA_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines()


def _first_device() -> dict[str, str]:
    """Return the variable that shows a process the first GPU alone; nothing when there is none or the user chose."""
    return {_DEVICES_VARIABLE: "0"} if _DEVICES_VARIABLE not in os.environ and gpu_names() else {}
