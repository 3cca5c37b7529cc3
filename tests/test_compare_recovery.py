"""A comparison that is killed at any moment costs the user nothing: the next one brings everything back."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.compare_workspace import kept_workspace
from flows.environment import child_environment
from minillm.params import load_params
from tests.compare_example import COMMIT, ROOT, edit, make_repository, state
from tests.scratch_repository import run_in, set_param

_KILLED = """
import os, signal
from pathlib import Path
from flows import compare_workspace
from flows.compare_workspace import kept_workspace
from minillm.params import read_yaml
from tests.compare_example import stand_in, with_settings
from tests.scratch_repository import run_in

def die(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

root, params = Path.cwd(), Path("params.yaml")
with kept_workspace(root) as workspace:
    own = read_yaml(params)

    def start(seed):
        workspace.start(with_settings(own, {"seed": seed}))

    def finish(seed):
        start(seed)
        stand_in(root, "x", {"seed": seed})

    WINDOW
    die()
"""
_WINDOWS = {
    "before the first run sets its params": "start(98)",
    "in the first run": "finish(98)",
    "between the note of run 2 and its params": "finish(98); compare_workspace._write = die; start(99)",
    "before run 2 sets its params": "finish(98); start(99)",
    "in run 2": "finish(98); finish(99)",
    "params.yaml is emptied": "finish(98); start(99); params.write_text('')",
    "params.yaml is half written": "finish(98); start(99); params.write_text(params.read_text()[:3000])",
    "params.yaml is cut in a line": "finish(98); params.write_text(params.read_text() + 'x: [1, ')",
    "params.yaml is replaced": "finish(98); start(99); params.unlink()",
    "DVC has stashed": "finish(98); start(99); run_in(root, 'git', 'stash', 'push')",
    "while it gives back": "finish(98); compare_workspace._attach_head = die; workspace.give_back()",
}


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with edits of params.yaml and of another file, which experiments leave alone."""
    root = make_repository(tmp_path, monkeypatch)
    (root / "notes.txt").write_text("one\n")
    run_in(root, "git", "config", "user.name", "test")
    run_in(root, "git", "config", "user.email", "test@localhost")
    run_in(root, "git", "add", ".")
    run_in(root, *COMMIT)
    (root / "notes.txt").write_text("two\n")
    run_in(root, "git", "stash", "push", "--quiet", "--message", "of the user")
    edit(root)
    (root / "notes.txt").write_text("three\n")
    return root


def _kill_in(root: Path, window: str) -> None:
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    code = _KILLED.replace("WINDOW", window)
    assert subprocess.run([sys.executable, "-c", code], cwd=root, env=environment).returncode == -signal.SIGKILL


def _recover(root: Path) -> None:
    with kept_workspace(root):
        pass


@pytest.mark.parametrize("window", _WINDOWS)
def test_after_a_kill_all_is_the_users_again(root: Path, window: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = state(root)
    _kill_in(root, _WINDOWS[window])
    _recover(root)
    assert state(root) == before
    [*aside, told] = capsys.readouterr().out.splitlines()
    assert told.startswith("params.yaml and outputs are again as they were before")
    assert len(aside) == ("cut" in window or "half" in window or "emptied" in window)
    assert all(list(root.glob(f"state/damaged/*-{name}")) for name in (["params.yaml"] if aside else []))
    assert not list((root / "state").rglob("workspace.json"))


@pytest.mark.parametrize(
    "command",
    [["-m", "flows.local"], ["-c", "from flows.cli import app; app(['stage', 'prepare'])"]],
    ids=["make run", "minillm stage"],
)
def test_who_works_here_next_gives_all_back_first(root: Path, command: list[str]) -> None:
    before = (root / "params.yaml").read_bytes()
    _kill_in(root, "finish(98)")
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    done = subprocess.run([sys.executable, *command], cwd=root, env=environment, capture_output=True, text=True)
    assert "params.yaml and outputs are again as they were before" in done.stdout
    assert (root / "params.yaml").read_bytes() == before


def test_an_edit_made_after_the_kill_stays_and_so_does_the_backup(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = (root / "params.yaml").read_text()
    _kill_in(root, "finish(98)")
    set_param(root, "seed", 5)
    edited = (root / "params.yaml").read_text()
    _recover(root)
    assert (root / "params.yaml").read_text() == edited
    [backup] = (root / "state/damaged").iterdir()
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith("params.yaml was edited") and f"state/damaged/{backup.name}" in line
    assert _kept_text(backup) == own


def test_a_backup_of_another_version_is_put_aside(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _kill_in(root, "finish(98)")
    path = root / "state/compare/workspace.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "more": 1}))
    _recover(root)
    [backup] = (root / "state/damaged").iterdir()
    assert f"state/damaged/{backup.name}" in capsys.readouterr().out
    assert load_params(root / "params.yaml").seed == 98


def test_a_stash_that_has_more_than_the_workspace_stays(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    num_stashes = len(run_in(root, "git", "stash", "list").stdout.splitlines())
    _kill_in(root, "finish(98); start(99); run_in(root, 'git', 'stash', 'push')")
    (root / "notes.txt").write_text("four\n")
    _recover(root)
    assert (root / "notes.txt").read_text() == "four\n"
    assert len(run_in(root, "git", "stash", "list").stdout.splitlines()) == num_stashes + 1
    assert "git stash list" in capsys.readouterr().out


def _kept_text(backup: Path) -> str:
    kept: dict[str, Any] = json.loads(backup.read_text())
    return base64.b64decode(kept["files"]["params.yaml"]).decode()
