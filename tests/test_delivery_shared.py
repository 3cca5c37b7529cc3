"""A checkout and its worktrees share their spools: whoever delivers, each run is made once and ended."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from flows.processes import wait_until
from flows.servers import free_port, mlflow_server, running
from minillm.config import Params
from tasks.delivery import Delivery
from tasks.event_spool import SPOOLS_DIR, spools
from tasks.tracking import _close, _stage_spool, sync_records
from tests.mlflow_place import runs, with_tracking

NUM_ROUNDS, NUM_SPOOLS = 4, 3
DELIVERER = f"""
    import logging, sys, time
    from pathlib import Path
    from minillm.params import load_params
    from tasks.tracking import sync_records
    import mlflow
    logging.basicConfig(level=logging.WARNING)
    shared, name = Path(sys.argv[1]), sys.argv[2]
    params = load_params(Path("params.yaml"))
    for number in range({NUM_ROUNDS}):
        (shared / f"ready-{{number}}-{{name}}").touch()
        while not (shared / f"go-{{number}}").exists():
            time.sleep(0.001)
        sync_records(params)
    (shared / f"ready-{NUM_ROUNDS}-{{name}}").touch()
"""


@pytest.fixture
def worktree(params: Params, tmp_path: Path) -> Path:
    """A directory as flows/worktree.py makes it: with a link to the spools of the checkout."""
    path = tmp_path / "state/worktrees/abc"
    (path / "state").mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml", "dvc.lock"):
        shutil.copy(tmp_path / name, path)
    (tmp_path / SPOOLS_DIR).mkdir()
    (path / SPOOLS_DIR).symlink_to(tmp_path / SPOOLS_DIR)
    return path


@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.pipeline)])
def store_uri(request: pytest.FixtureRequest, params: Params) -> Iterator[str]:
    if request.param == "sqlite":
        yield params.tracking.uri
        return
    server = mlflow_server(f"http://127.0.0.1:{free_port()}", params.tracking.uri)
    with running(Path.cwd(), [server]):
        yield server.url


def ended_spool(params: Params, stage: str = "teacher") -> Path:
    spool = _stage_spool(stage, params)
    spool.add("metrics", run="child", points=[("train/loss", 1.0, 1000, 1)])
    _close(spool, stage, "FINISHED")
    return spool.directory


def test_two_who_deliver_the_same_spools_make_each_run_once_and_warn_of_nothing(
    params: Params, worktree: Path, tmp_path: Path, store_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store_uri)
    shared = tmp_path / "shared"
    shared.mkdir()
    command = [sys.executable, "-c", textwrap.dedent(DELIVERER), str(shared)]
    both = [
        subprocess.Popen([*command, name], cwd=place, stderr=subprocess.PIPE, text=True)
        for name, place in (("checkout", tmp_path), ("worktree", worktree))
    ]
    made: list[str] = []
    for number in range(NUM_ROUNDS):
        assert wait_until(lambda number=number: len(list(shared.glob(f"ready-{number}-*"))) == 2, 120.0)
        monkeypatch.setenv("MINILLM_PIPELINE_KEY", f"key-{number}")
        made += [ended_spool(params).name for _ in range(NUM_SPOOLS)]
        (shared / f"go-{number}").touch()
    assert [process.communicate()[1] for process in both] == ["", ""]
    assert Counter(run.data.tags["spool"] for run in runs("stage")) == Counter(made)
    assert len(runs("pipeline")) == NUM_ROUNDS
    assert {run.info.status for run in [*runs("stage"), *runs("pipeline")]} == {"FINISHED"}
    assert spools() == [] and list(SPOOLS_DIR.iterdir()) == []


def test_a_store_has_one_name_in_all_directories(
    params: Params, worktree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    relative = with_tracking(params, uri="sqlite:///mlflow.db")
    spool = _stage_spool("teacher", params)
    assert sync_records(relative) == 1 and runs("stage")[0].info.status == "RUNNING"
    _close(spool, "teacher", "FINISHED")
    monkeypatch.chdir(worktree)
    assert sync_records(params) == 0
    monkeypatch.chdir(tmp_path)
    assert [run.info.status for run in runs("stage")] == ["FINISHED"]


def test_a_deliverer_that_another_keeps_out_takes_no_store_for_away(
    params: Params, worktree: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.delivery._LOCK_TIMEOUT_S", 0.1)
    ended_spool(params)
    monkeypatch.chdir(worktree)
    with FileLock(tmp_path / "state/mlflow-delivery.lock"):
        delivery = Delivery(params.tracking)
        delivery.start()
        delivery.finish()
    (waiting,) = [record.getMessage() for record in caplog.records]
    assert "records wait in" in waiting
    assert sync_records(params) == 0


def test_what_is_listed_may_go_before_it_is_looked_at(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, gone = ended_spool(params), SPOOLS_DIR / "1-gone"
    real = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: iter([*real(path), gone]))
    assert spools() == [kept]


def test_what_a_kill_left_without_a_header_goes(params: Params) -> None:
    unborn = SPOOLS_DIR / "1-unborn"
    unborn.mkdir(parents=True)
    assert spools() == [] and unborn.exists()
    os.utime(unborn, (time.time() - 61, time.time() - 61))
    assert spools() == [] and not unborn.exists()
