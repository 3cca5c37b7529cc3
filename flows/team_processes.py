"""Find and end the processes of a team: each one carries the team's id in its environment, and no other process has it.

Prefect starts a flow run in a session of its own, so the process group of its worker does not hold it; and a worker
that is told to end kills its runs at once. Therefore runs are ended first, and by their own signal.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Collection

import psutil

from flows.processes import STAGE_GRACE_S, wait_until

TEAM_VARIABLE = "MINILLM_TEAM"
RUN_GRACE_S = STAGE_GRACE_S + 15  # a stage saves its state, then the flow tells the server
_KILL_WAIT_S = 5.0


def team_process(pid: int, team: str) -> psutil.Process | None:
    """Return the living process with an id, if it is one of the team."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
    return process if _team_of(process) == team else None


def team_processes(team: str, without_groups: Collection[int] = ()) -> list[psutil.Process]:
    """Return the living processes of a team but those of some process groups."""
    found = [process for process in psutil.process_iter() if _team_of(process) == team]
    return [process for process in found if _group(process) not in without_groups]


def end_team_processes(team: str, without_groups: Collection[int] = ()) -> None:
    """End processes of a team: SIGTERM to those that nobody of them has started, a time of grace, SIGKILL to all."""
    _end(lambda: team_processes(team, without_groups))


def _end(find: Callable[[], list[psutil.Process]]) -> None:
    found = find()
    ids = {process.pid for process in found}
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.ppid() not in ids:
                process.send_signal(signal.SIGTERM)
    if not wait_until(lambda: not find(), RUN_GRACE_S):
        for process in find():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        wait_until(lambda: not find(), _KILL_WAIT_S)


def _team_of(process: psutil.Process) -> str | None:
    """Return the team that a process belongs to; a zombie and a process of somebody else belong to none."""
    try:
        return process.environ().get(TEAM_VARIABLE)
    except (psutil.Error, OSError):
        return None


def _group(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except (ProcessLookupError, PermissionError):
        return None
