"""What made a run: its pipeline, its process, its commit, parameters and hashes of files; without mlflow."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

LOCK_PATH = Path("dvc.lock")
UNDER_DVC = "DVC_STAGE"  # set by DVC for the commands that it runs
_KEY_VARIABLE = "MINILLM_PIPELINE_KEY"
_GIT_TIMEOUT_S = 5


def pipeline_key() -> str:
    """Return what all stages of one pipeline share: the key in the environment, else the dvc that started this stage.

    A stage started by hand is a pipeline of its own and gets a fresh key.
    """
    given = os.environ.get(_KEY_VARIABLE)
    if given:
        return re.sub(r"[^A-Za-z0-9._:-]", "-", given)
    dvc = dvc_above()
    return f"dvc-{_process_mark(dvc.pid)}" if dvc else f"single-{uuid.uuid4().hex[:12]}"


def dvc_above() -> psutil.Process | None:
    """Return the nearest DVC that this process descends from."""
    return next((process for process in psutil.Process().parents() if _is_dvc(process)), None)


def process_mark() -> str:
    """Return host, pid and start of this process: no other process ever has the same."""
    return _process_mark(os.getpid())


def is_dead(mark: str) -> bool:
    """Return whether the process of a mark ran on this host and has ended."""
    host, _, rest = mark.partition(":")
    pid = rest.partition(":")[0]
    if host != socket.gethostname() or not pid.isdigit():
        return False
    try:
        return _process_mark(int(pid)) != mark
    except psutil.NoSuchProcess:
        return True


def _process_mark(pid: int) -> str:
    return f"{socket.gethostname()}:{pid}:{_start_of(pid)}"


def _start_of(pid: int) -> str:
    """Return when a process started; on Linux in ticks since boot, which corrections of the clock do not move."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return str(int(psutil.Process(pid).create_time()))
    return status.rpartition(")")[2].split()[19]


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return runs_program(process.cmdline(), "dvc")
    except psutil.Error:
        return False


def runs_program(words: list[str], name: str) -> bool:
    """Return whether a command line starts a program: by itself, as Python's script, or as a module with `-m`."""
    program, *arguments = [Path(word).name for word in words[:3]] or [""]
    is_python = program.startswith("python")
    return program == name or (is_python and (arguments[:1] == [name] or arguments == ["-m", name]))


def tags() -> dict[str, str]:
    """Return the tags that say where a run comes from; those that are unknown here are left out."""
    flow_run_id, url = (os.environ.get(f"MINILLM_PREFECT_{name}") for name in ("FLOW_RUN_ID", "URL"))
    known = {
        "mlflow.source.name": " ".join(["python -m tasks", *sys.argv[1:2]]),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git_commit(),
        "dvc.lock.md5": file_md5(LOCK_PATH),
        "prefect.flow_run_id": flow_run_id,
        "mlflow.note.content": f"[Prefect flow run]({url})" if url else None,
    }
    return {name: value for name, value in known.items() if value}


def flattened(content: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested mappings as one, with dotted names; texts as they are, the rest as JSON."""
    flat: dict[str, str] = {}
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value if isinstance(value, str) else json.dumps(value)
    return flat


def git_commit() -> str | None:
    """Return the commit that is checked out; None outside a repository or without git."""
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=_GIT_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def file_md5(path: Path) -> str | None:
    """Return the md5 that DVC would give a file; None when there is no such file."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
