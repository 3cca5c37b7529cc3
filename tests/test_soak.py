"""Thirty scheduled runs that overlap, some of the same content, with Prefect's server killed in between."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from flows.dvc_lock import WORKTREES_DIR
from flows.processes import wait_until
from flows.team_processes import team_processes
from flows.team_record import read_record
from tests.team_repository import Team, team_up
from tests.two_clones import make_clones

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

_NUM_RUNS, _EVERY_S, _NUM_CONTENTS = 30, 5.0, 10
_ALL_S, _STUCK_S = 1500.0, 120.0


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file to which each stage writes when and where it ran."""
    monkeypatch.setenv("MINILLM_TEST_JOURNAL", str(tmp_path / "journal"))
    return tmp_path / "journal"


@pytest.fixture
def team(tmp_path: Path, journal: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Team]:
    with team_up(make_clones(tmp_path, with_code=True).cpu, monkeypatch) as team:
        yield team


def test_overlapping_runs_end_and_nothing_is_trained_twice(team: Team, journal: Path) -> None:
    ids = _schedule(team)
    assert wait_until(lambda: sum(_is_final(team, run_id) for run_id in ids) >= 5, _ALL_S)
    _kill_server(team.root)
    assert wait_until(lambda: all(_is_final(team, run_id) for run_id in ids), _ALL_S)
    states = [team.state(run_id) for run_id in ids]
    assert Counter(state.name for state in states) == {"Completed": _NUM_RUNS}, [state.message for state in states]
    ran = [json.loads(line) for line in journal.read_text().splitlines()]
    trained = [(place, start_s, end_s) for name, place, start_s, end_s in ran if name == "distill"]
    assert len({place for place, _, _ in trained}) == len(trained) == _NUM_CONTENTS
    assert not [pair for pair in combinations(trained, 2) if _meet(*pair)]
    with team.client() as client:
        runs = [client.read_flow_run(run_id) for run_id in ids]
    assert max(run.total_run_time for run in runs) < timedelta(seconds=_STUCK_S)
    assert not list((team.root / WORKTREES_DIR).glob("*/"))


def _schedule(team: Team) -> list[Any]:
    """Return the ids of runs that start one after the other, with contents in turn."""
    from prefect.states import Scheduled

    now, ids = datetime.now(UTC), []
    with team.client() as client:
        deployment = client.read_deployment_by_name("pipeline/on-demand").id
        for number in range(_NUM_RUNS):
            request = {"overrides": {"num_phases": number // (_NUM_RUNS // _NUM_CONTENTS) + 1}}
            state = Scheduled(scheduled_time=now + timedelta(seconds=number * _EVERY_S))
            run = client.create_flow_run_from_deployment(deployment, parameters={"request": request}, state=state)
            ids.append(run.id)
    return ids


def _is_final(team: Team, run_id: Any) -> bool:
    try:
        return bool(team.state(run_id).is_final())
    except Exception:  # the server is away for some seconds
        time.sleep(1)
        return False


def _kill_server(root: Path) -> None:
    record = read_record(root)
    assert record is not None
    [server] = [part for part in team_processes(record.team) if "flows.guarded_prefect" in part.cmdline()]
    server.kill()


def _meet(one: tuple[str, float, float], other: tuple[str, float, float]) -> bool:
    """Return whether two runs of a stage were at work in one place at one time."""
    return one[0] == other[0] and one[1] < other[2] and other[1] < one[2]
