"""What killed runs left: workspaces are removed after a week, and nobody works in a checkout that is not the user's."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from flows.dvc_lock import WORKTREES_DIR
from flows.placement import KEPT_PATH, RunFacts, placed
from flows.request import PipelineRequest
from tasks.storage import write_json
from tests.scratch_repository import commit_all, make_scratch_repository, run_in

pytestmark = pytest.mark.pipeline

_WEEK_S = 7 * 24 * 3600


def _left(root: Path, seed: int) -> Path:
    """Return the workspace that a run which failed has left."""
    request = PipelineRequest.model_validate({"overrides": {"seed": seed}})
    run = RunFacts(f"0-{seed}", f"run-{seed}", is_scheduled=False, is_retry=False)
    with pytest.raises(KeyError), placed(root, request, run, print) as place:
        raise KeyError
    return place.path


def test_old_ones_and_old_ruins_go_and_young_ones_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = commit_all(make_scratch_repository(tmp_path / "scratch"))
    monkeypatch.chdir(root)
    old, ruin, young, young_ruin = (_left(root, seed) for seed in range(4))
    for path in (ruin, young_ruin):  # as a kill leaves one that was being made or removed
        (path / "state/ready").unlink()
    for path in (old / "state/ready", ruin):
        os.utime(path, (time.time() - _WEEK_S - 60,) * 2)
    last = _left(root, 5)
    assert set((root / WORKTREES_DIR).iterdir()) == {young, young_ruin, last}
    listed = run_in(root, "git", "worktree", "list").stdout
    assert str(ruin) not in listed and str(young) in listed


def test_a_run_does_not_work_in_what_killed_experiments_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = commit_all(make_scratch_repository(tmp_path / "scratch"))
    monkeypatch.chdir(root)
    write_json(root / KEPT_PATH, {})  # what they need to give the checkout back
    run = RunFacts("0-1", "calm-fox", is_scheduled=False, is_retry=False)
    with placed(root, PipelineRequest(), run, print) as place:
        assert place.path != root
    (root / KEPT_PATH).unlink()
    with placed(root, PipelineRequest(), run, print) as place:
        assert place.path == root
