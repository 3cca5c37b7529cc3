"""Child processes that end with us: each leads a group that is ended on every way out, our own SIGKILL included."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

import psutil

STAGE_GRACE_S = 10.0  # from SIGTERM to SIGKILL; a stage saves its state in this time
_KILL_WAIT_S = 5.0
_POLL_S = 0.1
_SIGTERM_EXIT = 128 + signal.SIGTERM

# Holds one end of a pipe. A line means that the group is gone, end of file that we were killed and cannot end it.
_WATCHDOG = 'read -r done && exit; kill -s TERM -- "-$1"; sleep "$2"; kill -s KILL -- "-$1"'


@contextmanager
def process_group(
    command: Sequence[str],
    directory: Path,
    environment: Mapping[str, str],
    stdout: int | IO[str] | None,
    stderr: int | IO[str] | None,
    grace_s: float = STAGE_GRACE_S,
) -> Iterator[subprocess.Popen[str]]:
    """Yield a process that leads its own group; when the block is left, nothing of the group lives.

    Signalling the leader alone is not enough: `dvc repro` ends on SIGTERM without ending the stage that it started.
    """
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        encoding="utf-8",
        errors="replace",
    )
    watchdog = _start_watchdog(process.pid, grace_s)
    try:
        yield process
    finally:
        end_group(process.pid, grace_s)
        process.wait()
        _dismiss(watchdog)


def end_group(group: int, grace_s: float = STAGE_GRACE_S) -> None:
    """End every process of a group: SIGTERM, a time of grace, SIGKILL; returns at once when there is none."""
    for number, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, _KILL_WAIT_S)):
        if not group_members(group):
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, number)
        wait_until(lambda: not group_members(group), wait_s)


def group_members(group: int) -> list[int]:
    """Return the ids of the living processes of a group; zombies, which nobody may ever collect, do not count."""
    return [process.pid for process in psutil.process_iter() if _is_member(process, group)]


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Return whether the condition came true in time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_S)
    return True


def exit_on_sigterm() -> None:
    """Make SIGTERM leave the program through its `finally` blocks, with the usual exit code 143."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(_SIGTERM_EXIT)

    signal.signal(signal.SIGTERM, leave)


def _is_member(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, PermissionError, psutil.Error):
        return False


def _start_watchdog(group: int, grace_s: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(group), f"{grace_s:.0f}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _dismiss(watchdog: subprocess.Popen[bytes]) -> None:
    watchdog.communicate(b"done\n")
