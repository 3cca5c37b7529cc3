"""What a killed run leaves behind stops no later one, and two runs do not meet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows.dvc_lock import remove_dead_lock, wait_for_others
from flows.processes import wait_until
from flows.reproduction import reproduce
from minillm.errors import UserError
from tests.scratch_repository import make_scratch_repository

_START_TIMEOUT_S = 60.0


def sleeping(root: Path, program: str, time_s: float) -> subprocess.Popen[bytes]:
    """Start a process that looks like one of DVC or of a stage."""
    (root / program).mkdir(exist_ok=True)
    (root / program / "__init__.py").touch()
    (root / program / "__main__.py").write_text(f"import time; time.sleep({time_s})")
    process = subprocess.Popen([sys.executable, "-m", program], cwd=root)
    assert wait_until(lambda: program in psutil.Process(process.pid).cmdline(), _START_TIMEOUT_S)
    return process


def test_a_program_that_only_names_us_is_no_other_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.dvc_lock._LEFTOVER_S", 0.0)
    with subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(600)", "tasks", "dvc"], cwd=tmp_path
    ) as editor:
        try:
            assert wait_until(lambda: "dvc" in psutil.Process(editor.pid).cmdline(), _START_TIMEOUT_S)
            wait_for_others(tmp_path)
        finally:
            editor.kill()


@pytest.mark.parametrize("program", ["dvc", "tasks"])
def test_fault_06_another_run_is_named_when_it_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr("flows.dvc_lock._LEFTOVER_S", 0.2)
    with sleeping(tmp_path, program, 600) as other:
        try:
            with pytest.raises(UserError, match=rf"another run works here \(pid {other.pid}\)"):
                wait_for_others(tmp_path)
            wait_for_others(tmp_path / "elsewhere")
        finally:
            other.kill()
    wait_for_others(tmp_path)


def test_fault_09_what_ends_soon_is_waited_for(tmp_path: Path) -> None:
    with sleeping(tmp_path, "tasks", 3.0) as leftover:
        start_s = time.monotonic()
        wait_for_others(tmp_path)
        assert time.monotonic() - start_s > 1.0
        assert leftover.wait(timeout=1.0) == 0  # a process that ends has lost its command line a moment before


def test_fault_07_an_empty_lock_of_a_killed_run_is_removed_and_said(tmp_path: Path) -> None:
    root, lines = make_scratch_repository(tmp_path), list[str]()
    (root / ".dvc/tmp").mkdir(exist_ok=True)
    (root / ".dvc/tmp/rwlock").write_text("")
    reproduce(root, "prepare", lines.append, {})
    assert lines[0].startswith("removed .dvc/tmp/rwlock: a killed run left it behind")
    assert reproduce(root, "prepare", lines.append, {})["prepare"].outcome == "skipped"


def _write_lock(root: Path, pid: int, age_s: float) -> Path:
    path = root / ".dvc/tmp/rwlock"
    path.parent.mkdir(parents=True, exist_ok=True)
    holder = {"pid": pid, "cmd": "dvc repro"}
    path.write_text(json.dumps({"write": {"/out": holder}, "read": {"/dep": [holder]}}))
    written_s = time.time() - age_s
    os.utime(path, (written_s, written_s))
    return path


@pytest.mark.parametrize(("age_s", "is_removed"), [(0.0, False), (10**8, True)], ids=["its holder", "a newcomer"])
def test_fault_07_a_lock_that_names_a_living_process_is_removed_only_if_that_came_later(
    tmp_path: Path, age_s: float, is_removed: bool
) -> None:
    path = _write_lock(tmp_path, os.getpid(), age_s)
    assert (remove_dead_lock(tmp_path) is not None) == is_removed
    assert path.exists() != is_removed


def test_fault_07_a_lock_that_names_a_zombie_is_removed(tmp_path: Path) -> None:
    zombie = subprocess.Popen(["/bin/true"])
    try:
        assert wait_until(lambda: psutil.Process(zombie.pid).status() == psutil.STATUS_ZOMBIE, _START_TIMEOUT_S)
        path = _write_lock(tmp_path, zombie.pid, 0.0)
        assert remove_dead_lock(tmp_path) is not None
        assert not path.exists()
    finally:
        zombie.wait()


def test_fault_07_a_lock_that_names_nobody_alive_is_left_to_dvc(tmp_path: Path) -> None:
    gone = subprocess.Popen(["/bin/true"])
    gone.wait()
    path = _write_lock(tmp_path, gone.pid, 0.0)
    assert remove_dead_lock(tmp_path) is None
    assert path.exists()


def test_fault_07_a_lock_is_left_alone_while_a_dvc_process_works_here(tmp_path: Path) -> None:
    path = tmp_path / ".dvc/tmp/rwlock"
    path.parent.mkdir(parents=True)
    path.write_text("")
    with sleeping(tmp_path, "dvc", 600) as other:
        try:
            assert remove_dead_lock(tmp_path) is None
        finally:
            other.kill()
    assert remove_dead_lock(tmp_path) is not None
    assert not path.exists()
