"""Kill `dvc repro` under our entry point: the next run must need no hand and end as a run that was left alone.

The stages are quick fakes, so that a kill often meets DVC at its own work: hashing, linking, writing its lock.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from flows.environment import child_environment
from tests.chaos_findings import Findings
from tests.imports import ROOT
from tests.scratch_repository import make_scratch_repository, set_param

_OUTPUTS = ("prepared", "distilled.txt", "reports", "dvc.lock")
_END_S = 60.0
# What `make run` and the Prefect flow do, without the table of results, which the fakes do not make.
_ENTRY_POINT = "from pathlib import Path; from flows.reproduction import *; reproduce(Path.cwd(), None, print, {})"


def kill_repro(root: Path, found: Findings, num_kills: int) -> None:
    """Kill DVC, or our process above it, at random moments of a run in which every stage is stale."""
    make_scratch_repository(root)
    start = time.monotonic()
    assert _run(root).returncode == 0
    time_s, draw = time.monotonic() - start, random.Random(0)
    number = 0
    while found.kills < num_kills:
        number += 1
        _make_stale(root, number)
        is_dvc, moment_s = found.kills % 2 == 1, draw.uniform(0.1, 1.0) * time_s
        if _killed(root, is_dvc, moment_s):  # otherwise the run was quicker than that
            found.kills += 1
            _judge(root, found, f"{'dvc' if is_dvc else 'the entry point'} after {moment_s:.1f} s")


def _make_stale(root: Path, number: int) -> None:
    set_param(root, "seed", number)
    for section in ("distill.num_phases", "report.num_examples"):
        set_param(root, section, number + 1)


def _judge(root: Path, found: Findings, case: str) -> None:
    """Run again without touching anything, and note whether that ended well and left all outputs, known to DVC."""
    again = _run(root)
    found.manual_repairs += again.returncode != 0
    is_whole = _is_clean(root) and all((root / name).exists() for name in _OUTPUTS)
    found.divergences += not is_whole
    found.cases.append(f"{case}: {'whole' if is_whole else again.stderr[-300:]}")
    print(found.cases[-1], flush=True)


def _run(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(), cwd=root, env=_environment(), capture_output=True, text=True, check=False)


def _killed(root: Path, is_dvc: bool, moment_s: float) -> bool:
    """Start a run, kill it or the DVC under it after a time, and return whether there was anything to kill."""
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(_command(), cwd=root, env=_environment(), **silent) as run:
        try:
            run.wait(timeout=moment_s)
        except subprocess.TimeoutExpired:
            victims = _dvc_of(run.pid) if is_dvc else [run.pid]
            hit = [_is_hit(pid) for pid in victims]
            run.wait(timeout=_END_S)
            return any(hit)
    return False


def _dvc_of(pid: int) -> list[int]:
    try:
        children = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    return [child.pid for child in children if _is_dvc(child)]


def _is_dvc(process: psutil.Process) -> bool:
    try:
        return "dvc" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def _is_hit(pid: int) -> bool:
    """Kill a process, and return whether it was still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _is_clean(root: Path) -> bool:
    command = [sys.executable, "-m", "dvc", "status", "--quiet"]
    return subprocess.run(command, cwd=root, env=_environment(), capture_output=True).returncode == 0


def _command() -> list[str]:
    return [sys.executable, "-c", _ENTRY_POINT]


def _environment() -> dict[str, str]:
    return child_environment({"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"})
