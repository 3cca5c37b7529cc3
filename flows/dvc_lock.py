"""Who works in a repository: wait for those who end, name those who do not, and clear up DVC's lock after the dead."""

from __future__ import annotations

import json
from pathlib import Path

import psutil

from flows.dvc_record import put_aside_broken_record
from flows.processes import STAGE_GRACE_S, wait_until
from minillm.errors import UserError
from tasks.lineage import runs_program
from tasks.storage import STATE_DIR

WORKTREES_DIR = STATE_DIR / "worktrees"  # each is a workspace of its own; see flows/worktree.py
_RWLOCK = Path(".dvc/tmp/rwlock")
_CLOCK_SLACK_S = 1.0
_LEFTOVER_S = STAGE_GRACE_S + 5  # what a killed run leaves behind has ended by then


def clear_up(root: Path) -> list[str]:
    """Make a repository ready for a run, whatever killed runs left there, and return what was done.

    Raises UserError when another run goes on here.
    """
    wait_for_others(root)
    return [message for message in (remove_dead_lock(root), put_aside_broken_record(root)) if message]


def wait_for_others(root: Path) -> None:
    """Wait while what a killed run left behind ends; raises UserError when another run goes on here."""
    if wait_until(lambda: not _workers(root), _LEFTOVER_S):
        return
    if others := _workers(root):
        pids = ", ".join(str(process.pid) for process in others)
        raise UserError(f"{root}: another run works here (pid {pids}); wait until it ends, or end it")


def is_busy(root: Path) -> bool:
    """Return whether DVC or a stage is at work in a repository."""
    return bool(_workers(root))


def remove_dead_lock(root: Path) -> str | None:
    """Remove DVC's lock file when a killed run left it in a state that DVC does not mend; return what was done.

    A SIGKILL may leave it empty. It may also name a process that DVC takes for a living one: a zombie that the first
    process of a container never collects, or a newcomer that got the same number.
    """
    path = root / _RWLOCK
    if not path.exists():
        return None
    holders = _lock_holders(path)
    if holders is None:
        is_dead = not _dvc_works_in(root)
    else:
        written_s = path.stat().st_mtime
        is_dead = any(map(psutil.pid_exists, holders)) and not any(_may_hold(pid, written_s) for pid in holders)
    if not is_dead:
        return None
    path.unlink(missing_ok=True)
    return f"removed {_RWLOCK}: a killed run left it behind, and no DVC process is running here"


def _lock_holders(path: Path) -> list[int] | None:
    """Return the ids of the processes that a lock file names, or None when it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        readers = [reader for entries in content.get("read", {}).values() for reader in entries]
        return [int(entry["pid"]) for entry in (*readers, *content.get("write", {}).values())]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _may_hold(pid: int, written_s: float) -> bool:
    """Return whether a living process is old enough to have written the lock file."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written_s + _CLOCK_SLACK_S
    except psutil.NoSuchProcess:
        return False


def _workers(root: Path) -> list[psutil.Process]:
    """Return the processes of DVC and of stages in a repository."""
    return [process for process in psutil.process_iter() if _is_in(process, root, ("dvc", "tasks"))]


def _dvc_works_in(root: Path) -> bool:
    return any(_is_in(process, root, ("dvc",)) for process in psutil.process_iter())


def _is_in(process: psutil.Process, root: Path, programs: tuple[str, ...]) -> bool:
    """Return whether a process is one of the programs and at work in a repository, and not in a worktree inside it."""
    try:
        place, home = Path(process.cwd()), root.resolve()
        is_here = place.is_relative_to(home) and not place.is_relative_to(home / WORKTREES_DIR)
        return is_here and any(runs_program(process.cmdline(), name) for name in programs)
    except psutil.AccessDenied:
        return process.name() in programs
    except psutil.Error:
        return False
