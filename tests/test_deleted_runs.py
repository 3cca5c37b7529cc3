"""What a user deletes on MLflow's page: its records are put aside aloud, and those of all others arrive."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.processes import wait_until
from minillm.config import Params
from tasks.event_spool import SPOOLS_DIR, Spool, events_behind, read_progress, spools
from tasks.tracking import _close, _stage_spool, open_tracker, sync_records
from tests.mlflow_place import client, history, runs, with_tracking

DAMAGED = Path("state/damaged")


def begun_spool(params: Params, stage: str = "teacher") -> Spool:
    """A spool that is delivered as far as it goes, and goes on."""
    spool = _stage_spool(stage, params)
    spool.add("metrics", run="child", points=[("train/loss", 1.0, 1000, 1)])
    assert sync_records(params) == 1
    return spool


def end(spool: Spool, stage: str = "teacher") -> None:
    spool.add("metrics", run="child", points=[("train/loss", 2.0, 2000, 2)])
    spool.add("metrics", run="parent", points=[("final/loss", 2.0, 2000, 0)])
    _close(spool, stage, "FINISHED")


def ids_of(spool: Spool) -> dict[str, str]:
    ids: dict[str, str] = read_progress(spool.directory)["ids"]
    return ids


def remove_for_good(run_id: str) -> None:
    """What `mlflow gc` does to a run that was deleted."""
    client().delete_run(run_id)
    client()._tracking_client.store._hard_delete_run(run_id)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


DELETIONS: dict[str, Callable[[dict[str, str]], Any]] = {
    "child": lambda ids: client().delete_run(ids["child"]),
    "parent": lambda ids: client().delete_run(ids["parent"]),
    "child for good": lambda ids: remove_for_good(ids["child"]),
    "both": lambda ids: [client().delete_run(ids[name]) for name in ("parent", "child")],
}


@pytest.mark.parametrize("deletion", list(DELETIONS))
def test_a_deleted_run_stops_no_other(
    params: Params, deletion: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = begun_spool(params)
    DELETIONS[deletion](ids_of(first))
    end(first)
    monkeypatch.setenv("MINILLM_PIPELINE_KEY", "key-2")
    end(_stage_spool("warmup", params), "warmup")
    assert sync_records(params) == 0
    (line,) = warnings(caplog)
    (aside,) = DAMAGED.iterdir()
    assert aside.name == first.directory.name and len(list(events_behind(aside, 0))) > 5
    assert str(aside.resolve()) in line and "stage teacher of run pipeline key" in line and "\n" not in line
    assert {run.info.status for run in [*runs("stage"), *runs("pipeline")]} == {"FINISHED"}
    assert history(runs("stage")[-1], "train/loss") == [(2, 2.0)]
    done = subprocess.run([sys.executable, "-m", "tasks", "sync"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "MLflow has every record\n")


@pytest.mark.parametrize("is_begun", [True, False], ids=["begun", "not begun"])
def test_a_deleted_experiment_stops_no_other(params: Params, is_begun: bool, caplog: pytest.LogCaptureFixture) -> None:
    experiment = ids_of(begun := begun_spool(params))["experiment"]
    if not is_begun:
        end(begun)
        assert sync_records(params) == 0
        begun = _stage_spool("teacher", params)
    client().delete_experiment(experiment)
    end(begun)
    other = params.model_copy(update={"tracking": params.tracking.model_copy(update={"experiment": "another"})})
    end(_stage_spool("warmup", other), "warmup")
    assert sync_records(params) == 0
    (line,) = warnings(caplog)
    assert "experiment minillm" in line and str(DAMAGED) in line
    assert [path.name for path in DAMAGED.iterdir()] == [begun.directory.name]
    found = client().get_experiment_by_name("another")
    assert {run.info.status for run in client().search_runs([found.experiment_id])} == {"FINISHED"}


def test_a_stage_whose_run_is_deleted_meanwhile_goes_on_and_ends_well(
    params: Params, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.delivery._EVERY_S", 0.1)
    with open_tracker("distill", params) as tracker:
        tracker.log(0, {"kl/reverse": 0.5})
        assert wait_until(lambda: bool(runs("stage")) and bool(history(runs("stage")[0], "kl/reverse")), 20.0)
        client().delete_run(runs("stage")[0].info.run_id)
        tracker.log(1, {"kl/reverse": 0.4})
        wait_until(lambda: False, 1.0)
        assert sync_records(params) == 1 and warnings(caplog) == []
        tracker.artifact(Path("params.yaml"))
    (aside,) = DAMAGED.iterdir()
    (line,) = warnings(caplog)
    assert aside.name in line
    events = [event for event, _ in events_behind(aside, 0)]
    assert events[-1]["kind"] == "end" and (aside / events[-2]["name"]).is_file()
    (parent,) = runs("pipeline")
    assert parent.info.status == parent.data.tags["stage.distill.outcome"].upper() == "FINISHED"
    assert spools() == []


def test_a_run_that_is_restored_gets_what_was_put_aside(params: Params) -> None:
    spool = begun_spool(params)
    child = ids_of(spool)["child"]
    client().delete_run(child)
    end(spool)
    assert sync_records(params) == 0
    client().restore_run(child)
    (aside,) = DAMAGED.iterdir()
    aside.rename(SPOOLS_DIR / aside.name)
    assert sync_records(params) == 0
    (run,) = runs("stage")
    assert history(run, "train/loss") == [(1, 1.0), (2, 2.0)] and run.info.status == "FINISHED"
    assert list(DAMAGED.iterdir()) == []


def test_a_worktree_puts_aside_where_it_outlives_it(
    params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = begun_spool(params)
    client().delete_run(ids_of(spool)["child"])
    end(spool)
    (tmp_path / "worktree/state").mkdir(parents=True)
    (tmp_path / "worktree" / SPOOLS_DIR).symlink_to(tmp_path / SPOOLS_DIR)
    monkeypatch.chdir(tmp_path / "worktree")
    assert sync_records(params) == 0
    assert [path.name for path in (tmp_path / DAMAGED).iterdir()] == [spool.directory.name]


def test_another_refusal_keeps_its_records_waiting_and_stops_no_other(
    params: Params, caplog: pytest.LogCaptureFixture
) -> None:
    spool = begun_spool(params)
    spool.add("metrics", run="child", points=[("n" * 300, 2.0, 2000, 2)])
    end(spool)
    end(_stage_spool("warmup", params), "warmup")
    assert sync_records(params) == 1
    (line,) = warnings(caplog)
    assert "are kept in" in line and not DAMAGED.exists()
    assert history(runs("stage")[-1], "train/loss") == [(2, 2.0)]


def test_a_store_that_is_away_ends_the_round_and_all_that_wait_are_counted(
    params: Params, caplog: pytest.LogCaptureFixture
) -> None:
    for stage in ("teacher", "warmup"):
        end(_stage_spool(stage, params), stage)
    assert sync_records(with_tracking(params, uri="http://127.0.0.1:9")) == 2
    assert len(warnings(caplog)) == 1 and not DAMAGED.exists()
    assert sync_records(params) == 0
