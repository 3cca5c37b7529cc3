"""The deployed pipeline with real servers and workers: its GPU stages on the other pool, here and in another clone."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows.dvc_lock import WORKTREES_DIR
from flows.dvc_process import dvc, is_up_to_date
from flows.environment import child_environment
from flows.processes import process_group, wait_until
from tests.scratch_repository import run_in
from tests.team_repository import Team, team_up
from tests.two_clones import Clones, make_clones

pytestmark = [pytest.mark.pipeline, pytest.mark.slow]

_RUN_S = 240.0
_CANCELLED_S = 15.0
_LINES_S = 30.0


@pytest.fixture(scope="module")
def clones(tmp_path_factory: pytest.TempPathFactory) -> Clones:
    return make_clones(tmp_path_factory.mktemp("clones"), with_code=True)


@pytest.fixture(scope="module")
def team(clones: Clones) -> Iterator[Team]:
    with pytest.MonkeyPatch.context() as patch, team_up(clones.cpu, patch) as team:
        yield team


def _start(team: Team, **request: Any) -> Any:
    with team.client() as client:
        found = client.read_deployment_by_name("pipeline/on-demand")
        return client.create_flow_run_from_deployment(found.id, parameters={"request": request}).id


def _end(team: Team, run_id: Any) -> Any:
    assert wait_until(lambda: team.state(run_id).is_final(), _RUN_S), team.state(run_id)
    return team.state(run_id)


def _lines(team: Team, run_id: Any) -> list[str]:
    """Return the lines of a run, without those of the runs that it started."""
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    with team.client() as client:
        found = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id])), limit=200)
    return [log.message for log in found]


def _done_here(team: Team, run_id: Any) -> list[str]:
    """Return the stages that a run itself has run or restored."""
    found = [re.match(r"stage (\w+): (ran|restored) in", line) for line in _lines(team, run_id)]
    return [line[1] for line in found if line]


def test_a_stage_runs_on_the_gpu_pool_in_the_same_checkout(team: Team) -> None:
    state = _end(team, _start(team, overrides={"num_phases": 5}, gpu_pool="gpu", experiment="same-disk"))
    assert state.is_completed(), state.message
    dvc(team.root, "exp", "apply", "same-disk")
    assert is_up_to_date(team.root)
    run_in(team.root, "git", "checkout", "--quiet", "--", ".")


def test_a_cancelled_pipeline_stops_its_stage_in_time_and_frees_the_slot(team: Team) -> None:
    (team.root / "sleep").write_text("distill")
    _commit_switch(team.root)
    run_id = _start(team, overrides={"num_phases": 6}, gpu_pool="gpu", experiment="cancelled")
    started = lambda: list((team.root / WORKTREES_DIR).glob("*/started"))  # noqa: E731
    assert wait_until(lambda: bool(started()), _RUN_S)
    stage_id = int(started()[0].read_text())
    with team.client() as client:
        from prefect.states import Cancelling

        client.set_flow_run_state(run_id, Cancelling())
    assert wait_until(lambda: not psutil.pid_exists(stage_id), _CANCELLED_S)
    assert wait_until(lambda: team.state(run_id).is_cancelled(), _CANCELLED_S)
    (team.root / "sleep").unlink()
    _commit_switch(team.root)
    assert _end(team, _start(team, overrides={"num_phases": 6}, gpu_pool="gpu", experiment="next")).is_completed()


@pytest.fixture
def far_worker(team: Team, clones: Clones) -> Iterator[None]:
    """The commands of docs/team.md for a machine with a clone of its own, in the other clone."""
    environment = child_environment(
        {"PREFECT_API_URL": f"{team.prefect}/api", "PREFECT_HOME": str(clones.gpu / "home")}
    )
    prefect = [sys.executable, "-m", "prefect", "--no-prompt"]
    pool = [*prefect, "work-pool", "create", "far", "--type", "process"]
    deployment = [*prefect, "deploy", "flows/stage_flow.py:stage", "--name", "far", "--pool", "far"]
    for command in (pool, [*deployment, "--concurrency-limit", "1"]):
        subprocess.run(command, cwd=clones.gpu, env=environment, check=True, capture_output=True)
    worker = [*prefect, "worker", "start", "--pool", "far"]
    with process_group(worker, clones.gpu, environment, subprocess.DEVNULL, subprocess.DEVNULL):
        yield


def test_a_stage_runs_in_another_clone_and_nothing_is_computed_here(
    team: Team, clones: Clones, far_worker: None, tmp_path: Path
) -> None:
    request = {"overrides": {"num_phases": 7}, "gpu_pool": "far", "hand_over": "remotes", "experiment": "seven"}
    run_id = _start(team, **request)
    state = _end(team, run_id)
    assert state.is_completed(), state.message
    # The last lines arrive when the run has ended. What the tests before have made comes from the cache.
    assert wait_until(lambda: "report" in _done_here(team, run_id), _LINES_S)
    assert _done_here(team, run_id) == ["prepare", "report"]
    dvc(clones.cpu, "exp", "apply", "seven")
    assert is_up_to_date(clones.cpu)
    alone = make_clones(tmp_path / "alone").cpu
    run_in(alone, "sed", "-i", "s/num_phases: 12 /num_phases: 7 /", "params.yaml")
    run_in(alone, sys.executable, "-m", "dvc", "repro", "--quiet")
    assert (clones.cpu / "dvc.lock").read_text() == (alone / "dvc.lock").read_text()
    for repository in (clones.cpu, clones.gpu, clones.git_remote):
        assert "handover" not in run_in(repository, "git", "for-each-ref").stdout


def test_a_pool_without_a_deployment_is_named(team: Team) -> None:
    state = _end(team, _start(team, overrides={"num_phases": 8}, gpu_pool="tpu"))
    assert state.is_failed()
    assert "there is no deployment 'stage/tpu'" in state.message


def _commit_switch(root: Path) -> None:
    run_in(root, "git", "add", "--all", "sleep")
    run_in(root, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "--quiet", "-m", "edit")
