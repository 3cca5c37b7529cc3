"""The server of Prefect is needed by nothing but its pages: a run goes on without it, and `dvc repro` knows none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from flows.dvc_process import is_up_to_date
from flows.environment import child_environment
from flows.processes import group_members, process_group, wait_until
from flows.servers import free_port, prefect_server, running
from tests.imports import ROOT
from tests.scratch_repository import make_scratch_repository

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]
_START_S, _END_S = 120.0, 240.0


def test_fault_23_a_run_whose_server_is_killed_ends_with_all_its_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_scratch_repository(tmp_path / "root")
    monkeypatch.chdir(root)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (root / "sleep").write_text("distill")
    server = prefect_server(f"http://127.0.0.1:{free_port()}")
    # Prefect's client tries every call again for a minute; the outcome is the same after one more try.
    settings = {"PREFECT_API_URL": f"{server.url}/api", "PREFECT_CLIENT_MAX_RETRIES": "1"}
    command = [sys.executable, "-m", "flows"]
    with (
        running(root, [server]) as (process,),
        process_group(command, root, child_environment(settings), subprocess.PIPE, subprocess.STDOUT) as run,
    ):
        assert wait_until(lambda: (root / "started").exists(), _START_S)
        os.killpg(process.pid, signal.SIGKILL)
        assert wait_until(lambda: not group_members(process.pid), _START_S)
        (root / "sleep").unlink()
        run.communicate(timeout=_END_S)
    assert (root / "reports/report.html").exists() and is_up_to_date(root)
