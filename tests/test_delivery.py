"""Records reach MLflow whole and once, whatever happens to MLflow or to the process that makes them."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from flows.finish import record_outcomes
from flows.processes import wait_until
from flows.reproduction import StageRun
from flows.servers import free_port, mlflow_server, running
from minillm.config import Params
from tasks.event_spool import SPOOLS_DIR
from tasks.mlflow_store import Store
from tasks.tracking import open_tracker, sync_records
from tests.failing_client import deliver_through_failures
from tests.mlflow_place import client, history, runs, with_tracking

NOWHERE = "http://127.0.0.1:9"
STEPS = [(step, step / 7) for step in range(30)]


@pytest.fixture(autouse=True)
def model_directory(params: Params) -> None:
    Path("student").mkdir()
    Path("student/model.safetensors").write_bytes(b"weights")


def recorded_stage(params: Params) -> None:
    """A stage with a record of every kind."""
    with open_tracker("distill", with_tracking(params, logged_models=["student"])) as tracker:
        for step, value in STEPS:
            tracker.log(step, {"kl/reverse": value, "reward/mean": -value})
        tracker.summary({"final/rougeL": 20.0})
        tracker.tag("word", "said")
        tracker.artifact(Path("params.yaml"))
        tracker.dataset("train", Path("params.yaml"))
        tracker.model("student", Path("student"))


def assert_whole_and_once() -> None:
    (run,), (parent,) = runs("stage"), runs("pipeline")
    assert history(run, "kl/reverse") == STEPS
    assert history(run, "reward/mean") == [(step, -value) for step, value in STEPS]
    assert history(run, "final/rougeL") == [(29, 20.0)] and history(parent, "final/rougeL") == [(0, 20.0)]
    assert run.data.tags["word"] == "said" and run.info.status == parent.info.status == "FINISHED"
    assert [file.path for file in client().list_artifacts(run.info.run_id)] == ["params.yaml"]
    assert [entry.dataset.name for entry in run.inputs.dataset_inputs] == ["train"]
    (model,) = client().search_logged_models([run.info.experiment_id])
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    assert Path(model.artifact_location, "model.safetensors").read_bytes() == b"weights"
    assert list(SPOOLS_DIR.iterdir()) == []


def test_a_store_that_is_there_has_everything_when_the_stage_ends(params: Params) -> None:
    recorded_stage(params)
    assert_whole_and_once()


def test_records_arrive_while_the_stage_runs(params: Params) -> None:
    with open_tracker("distill", params) as tracker:
        tracker.log(0, {"kl/reverse": 0.5})
        assert wait_until(lambda: bool(runs("stage")) and bool(history(runs("stage")[0], "kl/reverse")), 20.0)


@pytest.mark.parametrize("uri", [NOWHERE, "sqlite:////proc/none/mlflow.db", "file:./mlruns"])
def test_fault_21_a_store_that_is_away_all_the_time_costs_one_warning_and_no_record(
    params: Params, caplog: pytest.LogCaptureFixture, uri: str
) -> None:
    start = time.monotonic()
    recorded_stage(with_tracking(params, uri=uri))
    assert time.monotonic() - start < 15
    (away, waiting) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert uri in away and "\n" not in away and "python -m tasks sync" in waiting
    assert runs("stage") == []
    assert sync_records(params) == 0
    assert_whole_and_once()


def test_sync_says_by_its_exit_code_whether_records_still_wait(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded_stage(with_tracking(params, uri=NOWHERE))
    command = [sys.executable, "-m", "tasks", "sync"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", NOWHERE)
    away = subprocess.run(command, capture_output=True, text=True)
    assert away.returncode == 1 and "records of 1 runs still wait" in away.stderr
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    assert subprocess.run(command, capture_output=True, text=True).stdout == "MLflow has every record\n"
    assert_whole_and_once()


def test_a_run_in_which_nothing_was_stale_delivers_what_waits(params: Params) -> None:
    recorded_stage(with_tracking(params, uri=NOWHERE))
    record_outcomes(params, {"distill": StageRun("skipped", 0.0)}, {})
    assert_whole_and_once()
    record_outcomes(params, {"distill": StageRun("skipped", 0.0)}, {})
    assert len(runs("pipeline")) == 1


def test_fault_21_a_store_lost_on_the_way_gets_everything_when_it_is_back(
    params: Params, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.delivery._EVERY_S", 0.1)
    monkeypatch.setattr("tasks.delivery._AGAIN_S", 0.1)
    with caplog.at_level(logging.INFO), open_tracker("distill", params) as tracker:
        tracker.log(*STEPS[0][:1], {"kl/reverse": STEPS[0][1]})
        assert wait_until(lambda: bool(runs("stage")) and bool(history(runs("stage")[0], "kl/reverse")), 20.0)
        Path("mlflow.db").rename("away.db")
        Path("mlflow.db").mkdir()
        for step, value in STEPS[1:]:
            tracker.log(step, {"kl/reverse": value})
        assert wait_until(lambda: "are kept in" in caplog.text, 20.0)
        Path("mlflow.db").rmdir()
        Path("away.db").rename("mlflow.db")
        assert wait_until(lambda: "is back" in caplog.text, 20.0)
    assert history(runs("stage")[0], "kl/reverse") == STEPS
    assert runs("stage")[0].info.status == "FINISHED"
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


def test_fault_21_a_server_that_never_answers_does_not_hold_up_the_stage(params: Params) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with open_tracker("distill", with_tracking(params, uri=uri)) as tracker:
            start = time.monotonic()
            for step, value in STEPS:
                tracker.log(step, {"kl/reverse": value})
            tracker.summary({"final/rougeL": 20.0})
            assert time.monotonic() - start < 1.0
    assert time.monotonic() - start < 15.0
    assert sync_records(params) == 0
    assert history(runs("stage")[0], "kl/reverse") == STEPS


@pytest.mark.pipeline
def test_fault_21_a_server_killed_on_the_way_and_started_again_has_everything_once(params: Params) -> None:
    server = mlflow_server(f"http://127.0.0.1:{free_port()}", params.tracking.uri)
    with open_tracker("distill", with_tracking(params, uri=server.url)) as tracker:
        with running(Path.cwd(), [server]) as (process,):
            for step, value in STEPS[:10]:
                tracker.log(step, {"kl/reverse": value})
            assert wait_until(lambda: bool(runs("stage")) and len(history(runs("stage")[0], "kl/reverse")) == 10, 30.0)
            os.killpg(process.pid, signal.SIGKILL)
        for step, value in STEPS[10:]:
            tracker.log(step, {"kl/reverse": value})
    with running(Path.cwd(), [server]):
        assert sync_records(with_tracking(params, uri=server.url)) == 0
    assert history(runs("stage")[0], "kl/reverse") == STEPS
    assert runs("stage")[0].info.status == "FINISHED"


@pytest.mark.parametrize("is_done_first", [False, True], ids=["call lost", "answer lost"])
def test_fault_21_a_delivery_whose_every_call_fails_once_is_made_good_without_a_second_point(
    params: Params, is_done_first: bool
) -> None:
    recorded_stage(with_tracking(params, uri=NOWHERE))
    assert deliver_through_failures(Store(params.tracking), is_done_first) > 20
    assert_whole_and_once()


def test_a_model_that_was_replaced_before_its_record_was_delivered_is_not_taken_for_it(params: Params) -> None:
    recorded_stage(with_tracking(params, uri=NOWHERE))
    Path("student/model.safetensors").write_bytes(b"others")
    sync_records(params)
    (run,) = runs("stage")
    assert client().search_logged_models([run.info.experiment_id]) == []
    assert len(run.data.tags["model.student.sha256"]) == 64


def test_records_begun_in_one_store_are_not_ended_in_another(params: Params, tmp_path: Path) -> None:
    with open_tracker("distill", params):
        assert wait_until(lambda: bool(runs("stage")), 20.0)
        other = with_tracking(params, uri=f"sqlite:///{tmp_path}/other.db")
        assert sync_records(other) == 1
    assert runs("stage")[0].info.status == "FINISHED"


STAGE = """
    import os, signal, sys
    from pathlib import Path
    from minillm.params import load_params
    from tasks.tracking import open_tracker
    with open_tracker(sys.argv[1], load_params(Path("params.yaml"))) as tracker:
        for step in range(30):
            tracker.log(step, {"kl/reverse": step / 7})
        if sys.argv[2:]:
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_fault_21_what_a_killed_stage_reported_is_delivered_and_its_run_closed_by_the_next_one(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(STAGE), "teacher", "killed"])
    monkeypatch.setenv("MINILLM_PIPELINE_KEY", "key-2")
    with open_tracker("teacher", params):
        pass
    assert [run.info.status for run in runs("stage")] == ["KILLED", "FINISHED"]
    assert [run.info.status for run in runs("pipeline")] == ["FAILED", "FINISHED"]
    assert history(runs("stage")[0], "kl/reverse") == STEPS


def test_a_delivery_cut_behind_the_end_leaves_the_run_as_it_ended(
    params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(path: Path) -> None:
        raise OSError("cut")

    recorded_stage(with_tracking(params, uri=NOWHERE))
    with monkeypatch.context() as patch:
        patch.setattr("tasks.delivery.shutil.rmtree", cut)
        assert sync_records(params) == 1
    monkeypatch.setattr("tasks.delivery.is_dead", lambda mark: True)
    assert sync_records(params) == 0
    assert_whole_and_once()


def test_a_run_of_a_host_that_is_gone_is_closed_after_a_day(params: Params) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(STAGE), "teacher", "killed"])
    (spool,) = SPOOLS_DIR.iterdir()
    events = spool / "events.jsonl"
    events.write_text(events.read_text().replace(socket.gethostname(), "another"))
    assert sync_records(params) == 1 and runs("stage")[0].info.status == "RUNNING"
    yesterday_s = time.time() - 25 * 3600
    os.utime(events, (yesterday_s, yesterday_s))
    assert sync_records(params) == 0 and runs("stage")[0].info.status == "KILLED"


def test_a_line_that_a_kill_cut_is_no_record(params: Params) -> None:
    subprocess.run([sys.executable, "-c", textwrap.dedent(STAGE), "teacher", "killed"])
    (spool,) = SPOOLS_DIR.iterdir()
    whole = (spool / "events.jsonl").read_bytes()
    (spool / "events.jsonl").write_bytes(whole[:-5])
    assert sync_records(params) == 0
    assert history(runs("stage")[0], "kl/reverse") == STEPS[:-1]


def test_two_first_starts_at_once_both_work(params: Params) -> None:
    Path("mlflow.db").unlink()
    command = [sys.executable, "-c", textwrap.dedent(STAGE)]
    started = [
        subprocess.Popen([*command, stage], stderr=subprocess.PIPE, text=True) for stage in ("teacher", "warmup")
    ]
    assert [process.communicate()[1] for process in started] == ["", ""]
    assert len(runs("pipeline")) == 1
    assert {run.info.run_name: run.info.status for run in runs("stage")} == {
        "teacher": "FINISHED",
        "warmup": "FINISHED",
    }
