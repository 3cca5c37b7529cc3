"""A worker and its run that are killed together: nobody reports the run, and the Prefect server finds out by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.processes import wait_until
from flows.team_processes import team_processes
from flows.team_record import read_record
from tests.team_repository import Team, make_team_repository, team_up

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]
_START_S = 120.0
_CRASHED_S = 120.0
_SLOT_S = 60.0  # a run that waits for a slot looks again every 30 s


@pytest.fixture
def team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    with team_up(make_team_repository(tmp_path / "root"), monkeypatch) as team:
        yield team


def kill_worker_and_run(root: Path) -> None:
    """Kill the worker of pool cpu and the run that it has started; it cannot see the run's end before its own."""
    record = read_record(root)
    assert record is not None
    commands = {process: process.cmdline() for process in team_processes(record.team)}
    [worker] = [process for process, command in commands.items() if {"--pool", "cpu"} <= set(command)]
    [run] = [process for process, command in commands.items() if "prefect.engine" in command]
    worker.kill()
    run.kill()


def test_fault_11_a_lost_run_is_crashed_in_two_minutes_frees_its_slot_and_can_be_tried_again(team: Team) -> None:
    (team.root / "sleep").write_text("distill")
    lost = team.start_run()
    assert wait_until(lambda: (team.root / "started").exists(), _START_S)
    stage_id = int((team.root / "started").read_text())
    kill_worker_and_run(team.root)
    killed_s = time.monotonic()
    waiting = team.start_run()
    assert wait_until(lambda: not psutil.pid_exists(stage_id), 30.0)
    assert team.state(lost).name == "Running"
    assert wait_until(lambda: is_name(team, lost, "Crashed"), _CRASHED_S)
    print(f"Crashed after {time.monotonic() - killed_s:.0f} s")
    assert "no heartbeat" in team.state(lost).message
    (team.root / "sleep").unlink()
    assert wait_until(lambda: is_name(team, waiting, "Completed"), _SLOT_S)
    print(f"the next run ended after {time.monotonic() - killed_s:.0f} s")
    team.retry(lost)
    assert wait_until(lambda: is_name(team, lost, "Completed"), _START_S)


def is_name(team: Team, run_id: Any, name: str) -> bool:
    return bool(team.state(run_id).name == name)
