"""`make up` and `make down`: one command starts all of it on loopback, one ends all of it, and nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import supervisor, team_processes
from flows.processes import wait_until
from flows.servers import Server, answers
from flows.supervisor import Keeper
from flows.team import down, up
from flows.team_processes import TEAM_VARIABLE, end_team_processes
from flows.team_record import TeamRecord, read_record, write_record
from minillm.errors import UserError
from tests.team_repository import Team, make_team_repository, minillm, team_up

_START_S = 120.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_team_repository(tmp_path / "root")


def of_team(root: Path) -> list[psutil.Process]:
    record = read_record(root)
    assert record is not None
    return team_processes.team_processes(record.team)


def one(root: Path, *words: str) -> psutil.Process:
    """Return the one process of the team whose command line has all words."""
    [found] = all_with(root, *words)
    return found


def all_with(root: Path, *words: str) -> list[psutil.Process]:
    return [process for process in of_team(root) if set(words) <= set(process.cmdline())]


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.pipeline
def test_up_starts_everything_on_loopback_once_and_down_ends_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with team_up(root, monkeypatch) as team:
        processes = of_team(root)
        connections = [connection for process in processes for connection in process.net_connections()]
        listening = {connection.laddr for connection in connections if connection.status == psutil.CONN_LISTEN}
        assert {address.ip for address in listening} == {"127.0.0.1"} and len(listening) == 4
        assert answers(f"{team.prefect}/api/health") and answers(f"{team.mlflow}/health")
        again = minillm(root, "up")
        assert again.returncode == 0 and again.stdout.startswith("up already\n") and team.prefect in again.stdout
        assert {process.pid for process in of_team(root)} == {process.pid for process in processes}
        check_prefect(team)
        assert {path.name for path in (root / ".servers").glob("*.log")} == {
            f"{name}.log" for name in ("team", "prefect", "mlflow", "worker-cpu", "worker-gpu")
        }
        ended = minillm(root, "down")
        assert (ended.returncode, ended.stdout) == (0, "down\n")
        assert not any(map(is_alive, processes))
        assert down(root) == "down already"


def check_prefect(team: Team) -> None:
    """The pools, a deployment and the automation are there, and each pool has a worker.

    Prefect learns of a worker some time after that answers its own health check.
    """
    with team.client() as client:
        pools = {pool.name: (pool.type, pool.concurrency_limit) for pool in client.read_work_pools()}
        assert pools == {"cpu": ("process", None), "gpu": ("process", 1)}
        for name in pools:
            wait_until(lambda name=name: bool(client.read_workers_for_work_pool(name)), 60)  # type: ignore[misc]
            assert [worker.status for worker in client.read_workers_for_work_pool(name)] == ["ONLINE"]
        assert client.read_deployment_by_name("stages/here").work_pool_name == "cpu"
        assert len(client.read_automations()) == 1


def test_down_without_a_team_does_nothing(root: Path) -> None:
    assert down(root) == "down already"


def test_a_port_in_use_is_one_line_and_nothing_is_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        message = rf"^port {port} is in use; stop what listens there, or choose another: PREFECT_PORT=\.\.\.$"
        monkeypatch.setenv("PREFECT_PORT", str(port))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        with pytest.raises(UserError, match=message):
            up(root)
    assert of_team(root) == []


def sleeper(team: str, code: str = "import time; print(1, flush=True); time.sleep(600)") -> subprocess.Popen[bytes]:
    environment = {**os.environ, TEAM_VARIABLE: team}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline()
    return process


@pytest.fixture
def started() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    processes: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        processes.append(sleeper(*arguments))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_down_ends_no_process_of_somebody_else(root: Path, started: Callable[..., subprocess.Popen[bytes]]) -> None:
    """The id of a process that has ended may be that of another one by now."""
    stranger, other_team = started(""), started(uuid.uuid4().hex)
    write_record(root, TeamRecord(uuid.uuid4().hex, stranger.pid, is_up=True, pages={}))
    assert down(root) == "down already"
    assert stranger.poll() is None and other_team.poll() is None


def test_down_ends_what_a_killed_supervisor_left(root: Path, started: Callable[..., subprocess.Popen[bytes]]) -> None:
    team = uuid.uuid4().hex
    left = started(team)
    write_record(root, TeamRecord(team, 2**22 + 1, is_up=True, pages={}))
    assert down(root) == "down"
    assert left.wait(5) == -signal.SIGTERM


def test_a_process_that_does_not_end_is_killed(
    started: Callable[..., subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(team_processes, "RUN_GRACE_S", 0.5)
    team = uuid.uuid4().hex
    deaf = started(
        team, "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    )
    end_team_processes(team)
    assert deaf.wait(5) == -signal.SIGKILL


def test_a_part_that_ends_is_started_again_ever_more_slowly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now_s)
    part = Server("part", "", "", [sys.executable, "-c", "print('here')"])
    pauses: list[float] = []
    with Keeper(tmp_path, part) as keeper:
        for _ in range(8):
            keeper.process.wait()
            keeper.keep()
            assert keeper._due_s is not None
            pauses.append(keeper._due_s - now_s)
            now_s += pauses[-1]
            keeper.keep()
        keeper.process.wait()
        now_s += 301.0
        keeper.keep()
        assert keeper._due_s == now_s + 1.0
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60]
    assert (tmp_path / ".servers/part.log").read_text().splitlines() == ["here"] * 9


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    with pytest.MonkeyPatch.context() as patch:
        root = make_team_repository(tmp_path_factory.mktemp("team") / "root")
        with team_up(root, patch) as team:
            yield team


def started_run(team: Team) -> Any:
    """Return the id of a run whose stage `distill` waits until the file `sleep` is gone."""
    (team.root / "started").unlink(missing_ok=True)
    (team.root / "dvc.lock").unlink(missing_ok=True)
    shutil.rmtree(team.root / ".dvc/cache", ignore_errors=True)
    (team.root / "sleep").write_text("distill")
    run_id = team.start_run()
    assert wait_until(lambda: (team.root / "started").exists(), _START_S)
    return run_id


def let_end(team: Team, run_id: Any) -> str:
    """Let the stage end, and return the name of the run's last state."""
    (team.root / "sleep").unlink()
    assert wait_until(lambda: bool(team.state(run_id).is_final()), _START_S)
    return str(team.state(run_id).name)


@pytest.mark.pipeline
@pytest.mark.slow
@pytest.mark.parametrize("words", [("--pool", "cpu"), ("flows.guarded_prefect",)], ids=["worker", "prefect"])
def test_a_run_outlives_a_part_that_is_killed(team: Team, words: tuple[str, ...]) -> None:
    run_id = started_run(team)
    killed = one(team.root, *words)
    killed.kill()
    assert wait_until(lambda: not is_alive(killed), 10.0)
    assert wait_until(lambda: len(all_with(team.root, *words)) == 1 and answers(f"{team.prefect}/api/health"), _START_S)
    with team.client() as client:  # the run does this every few minutes, and is ended when it fails
        client.renew_concurrency_lease(team.state(run_id).state_details.deployment_concurrency_lease_id, 300)
    assert let_end(team, run_id) == "Completed"
    next_id = team.start_run()
    assert wait_until(lambda: bool(team.state(next_id).is_completed()), _START_S)


SAVING_STAGE = """
import signal, sys, time
from pathlib import Path
def save(number, frame):
    time.sleep(3)
    Path("saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, save)
"""


@pytest.mark.pipeline
@pytest.mark.slow
def test_down_lets_a_stage_save_and_the_run_can_be_tried_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "stage.py").write_text(SAVING_STAGE + (root / "stage.py").read_text())
    with team_up(root, monkeypatch) as team:
        run_id = started_run(team)
    assert (root / "saved").exists()
    with team_up(root, monkeypatch) as team:
        assert team.state(run_id).name == "Crashed"
        team.retry(run_id)
        assert let_end(team, run_id) == "Completed"


@pytest.mark.pipeline
@pytest.mark.slow
def test_a_killed_supervisor_takes_all_with_it_and_up_starts_anew(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with team_up(root, monkeypatch) as team:
        started_run(team)
        processes = of_team(root)
        one(root, "flows.supervisor").kill()
        assert up(root).startswith("up\n")
        assert not any(map(is_alive, processes))
        assert len(of_team(root)) >= 5
