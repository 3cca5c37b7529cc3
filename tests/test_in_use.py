"""One at a time works in the checkout: who is second is told in one line who the first one is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows import compare, local, seeds
from flows.cli import app
from flows.compare_workspace import kept_workspace
from flows.environment import child_environment
from flows.placement import occupied
from minillm.errors import UserError
from tests.compare_example import ROOT, make_repository, stand_in


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository that is the working directory; nobody in it is waited for."""
    monkeypatch.setattr("flows.placement._ENDING_S", 0)
    return make_repository(tmp_path, monkeypatch)


def _run_seeds() -> int:
    return seeds.main(["17"])


def _compare() -> int:
    return compare.main(["--variants", "kd", "--seeds", "17"])


def _stage() -> int:
    done = CliRunner().invoke(app, ["stage", "prepare"])
    print(done.stderr, file=sys.stderr, end="")
    return done.exit_code


@pytest.fixture(params=[local.main, _run_seeds, _compare, _stage], ids=["run", "seeds", "compare", "stage"])
def command(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Something that works in the checkout; pytest keeps its own signal handlers."""
    monkeypatch.setattr(local, "exit_on_sigterm", lambda: None)
    monkeypatch.setattr(seeds, "end_by_signal", lambda: None)
    command: Callable[[], int] = request.param
    return command


def test_fault_06_between_two_experiments_nobody_else_may_work_here(
    root: Path, command: Callable[[], int], capsys: pytest.CaptureFixture[str]
) -> None:
    with kept_workspace(root) as workspace:
        workspace.start({"seed": 1})
        stand_in(root, "x", {"seed": 1})
        assert command() == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line == f"error: {root}: another comparison works here (pid {os.getpid()}); wait until it ends, or end it"


@pytest.mark.parametrize("work", ["run", "seeds"])
def test_a_run_and_seeds_hold_the_checkout_for_as_long_as_they_work(
    root: Path, monkeypatch: pytest.MonkeyPatch, work: str
) -> None:
    refusals: list[str] = []

    def meet(*arguments: Any) -> dict[str, Any]:
        with pytest.raises(UserError, match=r"another .* works here") as refused, kept_workspace(root):
            pass
        refusals.append(str(refused.value))
        raise UserError("enough")

    monkeypatch.setattr(local, "exit_on_sigterm", lambda: None)
    monkeypatch.setattr(seeds, "end_by_signal", lambda: None)
    monkeypatch.setattr(local, "check_models", lambda *models: None)
    monkeypatch.setattr(local, "run_and_record", meet)
    monkeypatch.setattr(seeds, "run_experiment", meet)
    assert (local.main() if work == "run" else seeds.main(["18"])) == 2
    [refusal] = refusals
    assert f"another {'run' if work == 'run' else 'run over seeds'} works here (pid {os.getpid()})" in refusal


def test_who_was_killed_holds_nothing(root: Path) -> None:
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom flows.placement import occupied\n"
        "with occupied(Path.cwd(), 'run'): os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    assert subprocess.run([sys.executable, "-c", code], cwd=root, env=environment).returncode == -signal.SIGKILL
    with occupied(root, "run"):
        pass


def test_a_directory_that_is_no_repository_stays_as_it_is(
    tmp_path: Path, command: Callable[[], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command() == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and ("dvc.yaml" in line or "git repository" in line)
    assert not list(tmp_path.iterdir())
