"""`python -m flows.supervisor`: both servers and the workers as children of one process; `minillm up` starts it.

A part that ends is started again. When this process ends, so does every part, whatever ended it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from subprocess import Popen
from types import TracebackType
from typing import NoReturn

from filelock import FileLock, Timeout

from flows.database import make_databases
from flows.environment import child_environment, mlflow_url, prefect_url
from flows.processes import exit_on_sigterm
from flows.servers import SERVERS_DIR, Server, ServerError, own_servers, require_free_port, started, wait_for_health
from flows.team_processes import TEAM_VARIABLE, end_team_processes
from flows.team_record import TeamRecord, write_record
from flows.workers import POOLS, prefect_client, worker
from minillm.errors import UserError
from minillm.params import load_params
from tasks.tracking_store import is_server, tracking_uri

LOG_PATH = SERVERS_DIR / "team.log"
_POLL_S = 1.0
_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0
_STEADY_S = 300.0  # a part that lived so long starts again after the first pause


class Keeper:
    """A part of the team and its process, which is started again after it has ended: at once, then ever more slowly."""

    def __init__(self, root: Path, part: Server) -> None:
        self.part = part
        self._root = root
        self._stack = ExitStack()
        self._pause_s = 0.0
        self._due_s: float | None = None

    def __enter__(self) -> Keeper:
        self._start(is_again=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def keep(self) -> None:
        """Start the part again when it has ended and its pause is over."""
        if self._due_s is not None and time.monotonic() >= self._due_s:
            self._start(is_again=True)
        elif self._due_s is None and self.process.poll() is not None:
            self._note_end()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the part's process group, if there is one."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def _note_end(self) -> None:
        now_s = time.monotonic()
        is_steady = self._pause_s == 0 or now_s - self._started_s >= _STEADY_S
        self._pause_s = _FIRST_PAUSE_S if is_steady else min(2 * self._pause_s, _LONGEST_PAUSE_S)
        self._due_s = now_s + self._pause_s
        _say(f"{self.part.name} ended with exit code {self.process.returncode}; again in {self._pause_s:.0f} s")
        self._stack.close()  # ends what is left of its group

    def _start(self, is_again: bool) -> None:
        self.process: Popen[str] = self._stack.enter_context(started(self._root, self.part, is_again))
        self._started_s, self._due_s = time.monotonic(), None


def supervise(root: Path, team: str) -> None:
    """Start all parts, say in the record that they are up, and keep them so; returns never."""
    tracking = load_params(root / "params.yaml").tracking
    pages, uri = {"prefect": prefect_url(), "mlflow": mlflow_url(tracking)}, tracking_uri(tracking)
    client, record = prefect_client(pages["prefect"]), TeamRecord(team, os.getpid(), is_up=False, pages=pages)
    write_record(root, record)
    servers = [_of_team(server, team) for server in own_servers(tracking)]
    for server in servers:
        require_free_port(server)
    make_databases()
    store_uri = uri if is_server(uri) else pages["mlflow"]
    with ExitStack() as stack:
        keepers = _started_all(stack, root, servers)
        _wait_for_all(keepers)
        _run(root, client, "flows.prefect_setup")
        workers = _started_all(stack, root, [_of_team(worker(pool, client, store_uri), team) for pool in POOLS])
        stack.callback(_end_runs, team, keepers, workers)
        _run(root, client, "prefect", "deploy", "--all")  # while the workers start
        _wait_for_all(workers)
        write_record(root, replace(record, is_up=True))
        _say("up")
        _keep([*keepers, *workers])


def _started_all(stack: ExitStack, root: Path, parts: Sequence[Server]) -> list[Keeper]:
    return [stack.enter_context(Keeper(root, part)) for part in parts]


def _wait_for_all(keepers: Sequence[Keeper]) -> None:
    for keeper in keepers:
        wait_for_health(keeper.part, keeper.process)


def _run(root: Path, client: Mapping[str, str], *module: str) -> None:
    """Run a module of Python to its end as a client of Prefect; its lines go to our own log."""
    command = [sys.executable, "-m", *module]
    if subprocess.run(command, cwd=root, env=child_environment(client)).returncode != 0:
        raise ServerError(f"`python -m {' '.join(module)}` failed; its last words are in {LOG_PATH}")


def _keep(keepers: Sequence[Keeper]) -> NoReturn:
    while True:
        for keeper in keepers:
            keeper.keep()
        time.sleep(_POLL_S)


def _end_runs(team: str, servers: Sequence[Keeper], workers: Sequence[Keeper]) -> None:
    """End the flow runs while Prefect still listens; a stopped worker takes no new one in their place."""
    for keeper in workers:
        keeper.signal(signal.SIGSTOP)
    end_team_processes(team, {os.getpgid(0), *(keeper.process.pid for keeper in (*servers, *workers))})
    for keeper in workers:
        keeper.signal(signal.SIGCONT)


def _of_team(part: Server, team: str) -> Server:
    return replace(part, environment={**part.environment, TEAM_VARIABLE: team})


def _say(words: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {words}", flush=True)


def main() -> int:
    """Serve until SIGTERM; what cannot run is a one-line error, and nothing of the team is left."""
    exit_on_sigterm()
    root = Path.cwd()
    team = os.environ.pop(TEAM_VARIABLE)  # of this process and its parts alone, not of what guards them
    try:
        with FileLock(root / SERVERS_DIR / "team.lock", timeout=0):
            (root / LOG_PATH).write_text("", encoding="utf-8")
            supervise(root, team)
    except Timeout:
        _say("error: the team of this repository is up, or being started or ended, by another command")
    except UserError as error:
        _say(f"error: {error}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
