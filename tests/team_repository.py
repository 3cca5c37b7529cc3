"""A scratch repository with one deployment, which runs its quick stages by DVC, and a team on free ports."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.environment import child_environment
from flows.servers import free_port
from flows.team import down, up
from tests.imports import ROOT
from tests.scratch_repository import make_scratch_repository

_FLOW = """
from pathlib import Path
from prefect import flow, get_run_logger
from prefect.states import Failed
from flows.reproduction import DvcError, reproduce

@flow(name="stages", persist_result=False)
def stages():
    try:
        reproduce(Path.cwd(), None, get_run_logger().info, {})
    except DvcError as error:
        return Failed(message=str(error))
"""
_DEPLOYMENTS = """
name: scratch
prefect-version: 3.9.1
pull:
  - prefect.deployments.steps.set_working_directory:
      directory: {root}
deployments:
  - name: here
    entrypoint: flow.py:stages
    concurrency_limit: {{limit: 1, collision_strategy: ENQUEUE}}
    work_pool: {{name: cpu}}
"""


@dataclass(frozen=True)
class Team:
    """A team that is up, and a client's way to its Prefect server."""

    root: Path
    prefect: str
    mlflow: str

    @contextmanager
    def client(self) -> Iterator[Any]:
        """Yield a client of the server."""
        from prefect.client.orchestration import get_client
        from prefect.settings import PREFECT_API_URL, temporary_settings

        with temporary_settings({PREFECT_API_URL: f"{self.prefect}/api"}), get_client(sync_client=True) as client:
            yield client

    def start_run(self, deployment: str = "stages/here") -> Any:
        """Ask for a run and return its id."""
        with self.client() as client:
            found = client.read_deployment_by_name(deployment)
            return client.create_flow_run_from_deployment(found.id).id

    def state(self, run_id: Any) -> Any:
        """Return the state of a run."""
        with self.client() as client:
            return client.read_flow_run(run_id).state

    def retry(self, run_id: Any) -> None:
        """Do what the page's button Retry does."""
        from prefect.states import AwaitingRetry

        with self.client() as client:
            client.set_flow_run_state(run_id, AwaitingRetry())


def make_team_repository(root: Path) -> Path:
    """Return a scratch repository with a deployment `stages/here`."""
    make_scratch_repository(root)
    (root / "flow.py").write_text(_FLOW)
    (root / "prefect.yaml").write_text(_DEPLOYMENTS.format(root=root))
    return root


@contextmanager
def team_up(root: Path, patch: Any) -> Iterator[Team]:
    """Yield a team in a repository, which becomes the working directory; it is down after the block."""
    patch.chdir(root)
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_AUTH_STRING", "PREFECT_SERVER_API_AUTH_STRING"):
        patch.delenv(name, raising=False)
    patch.setenv("PYTHONPATH", str(ROOT))
    patch.setenv("PREFECT_PORT", str(free_port()))
    patch.setenv("MLFLOW_PORT", str(free_port()))
    patch.setenv("PREFECT_HOME", str(root / ".servers/client"))
    try:
        up(root)
        yield Team(root, *(f"http://127.0.0.1:{os.environ[name]}" for name in ("PREFECT_PORT", "MLFLOW_PORT")))
    finally:
        down(root)


def minillm(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `minillm` to its end in a repository."""
    code = "from flows.cli import app; app()"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=root, env=child_environment({}), capture_output=True, text=True, timeout=300)
