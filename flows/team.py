"""`minillm up` and `minillm down` (`make up`, `make down`): servers and workers in the background of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from pathlib import Path

import psutil

from flows.environment import child_environment, prefect_url
from flows.processes import STAGE_GRACE_S, wait_until
from flows.servers import SERVERS_DIR, ServerError, answers
from flows.supervisor import LOG_PATH
from flows.team_processes import RUN_GRACE_S, TEAM_VARIABLE, end_team_processes, team_process, team_processes
from flows.team_record import TeamRecord, read_record, remove_record
from flows.workers import POOLS, prefect_client
from minillm.errors import UserError
from tasks.tracking_store import without_secrets

_NUM_PARTS = 2 + len(POOLS)
_UP_TIMEOUT_S = 600.0  # each part has its own, shorter time; this one is for a supervisor that says nothing
_DOWN_TIMEOUT_S = RUN_GRACE_S + (_NUM_PARTS + 1) * STAGE_GRACE_S


def up(root: Path) -> str:
    """Start the team unless it is up, and return where it is; raises UserError when a part cannot start."""
    record = read_record(root)
    if record and _supervisor(record):
        return f"up already\n{_where(record)}" if record.is_up else _refuse_second()
    if record:
        _end(root, record)
    team = uuid.uuid4().hex
    process = _start_supervisor(root, team)
    try:
        wait_until(lambda: process.poll() is not None or _is_up(root, team), _UP_TIMEOUT_S)
    except BaseException:
        process.terminate()
        process.wait()
        raise
    record = read_record(root)
    if process.poll() is not None or record is None or not _is_up(root, team):
        raise ServerError(_last_words(root))
    return f"up\n{_where(record)}"


def down(root: Path) -> str:
    """End the team with its runs, if there is one, and return what was done.

    It ends processes that carry the team's id in their environment, and no other.
    """
    record = read_record(root)
    if record is None:
        return "down already"
    was_up = bool(_supervisor(record) or team_processes(record.team))
    _end(root, record)
    return "down" if was_up else "down already"


def team_line(root: Path) -> str | None:
    """Return where the team's pages are; None when it is not up."""
    record = read_record(root)
    return _pages(record) if record and record.is_up and _supervisor(record) else None


def connect_to_prefect() -> None:
    """Make this process a client of the Prefect server, unless it is one already; raises UserError when none is up.

    Prefect reads the variables when it is imported, which must come after.
    """
    for name, value in prefect_client(prefect_url()).items():
        os.environ.setdefault(name, value)
    api_url = os.environ["PREFECT_API_URL"]
    if not answers(f"{api_url}/health"):
        raise UserError(f"no Prefect server at {without_secrets(api_url)}; `make up` starts it")


def _start_supervisor(root: Path, team: str) -> subprocess.Popen[bytes]:
    path = root / LOG_PATH
    path.parent.mkdir(exist_ok=True)
    with path.open("a", encoding="utf-8") as log:  # it may be that of another team, which the supervisor finds out
        return subprocess.Popen(
            [sys.executable, "-m", "flows.supervisor"],
            cwd=root,
            env=child_environment({TEAM_VARIABLE: team}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def _end(root: Path, record: TeamRecord) -> None:
    supervisor = _supervisor(record)
    if supervisor:
        supervisor.terminate()
        if not wait_until(lambda: _supervisor(record) is None, _DOWN_TIMEOUT_S):
            supervisor.kill()
    # Those of a supervisor that was killed; the guards of its process groups may be at work on them as well.
    end_team_processes(record.team)
    remove_record(root)


def _supervisor(record: TeamRecord) -> psutil.Process | None:
    return team_process(record.supervisor_id, record.team)


def _is_up(root: Path, team: str) -> bool:
    record = read_record(root)
    return record is not None and record.team == team and record.is_up


def _refuse_second() -> str:
    raise UserError(f"the team is being started by another command; see {LOG_PATH}")


def _last_words(root: Path) -> str:
    lines = (root / LOG_PATH).read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line.partition(" error: ")[2] for line in lines if " error: " in line]
    return errors[-1] if errors else f"the supervisor ended; its last words are in {LOG_PATH}"


def _pages(record: TeamRecord) -> str:
    return ", ".join(f"{name} {page}" for name, page in record.pages.items())


def _where(record: TeamRecord) -> str:
    return "\n".join(
        (
            f"Prefect  {record.pages['prefect']}",
            f"MLflow   {record.pages['mlflow']}",
            f"workers  {', '.join(POOLS)}",
            f"logs     {SERVERS_DIR}{os.sep}*.log",
            "stop     make down",
        )
    )
