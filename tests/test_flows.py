"""The Prefect flow does what plain `dvc repro` does, and says so: a real Prefect server, real DVC, quick stages."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.dvc_process import is_up_to_date
from flows.environment import child_environment, mlflow_url, prefect_url
from flows.local import run_and_record
from flows.memory import PeakMemory
from flows.progress_lines import parse_progress
from flows.reproduction import DvcError
from flows.request import PipelineRequest
from flows.servers import ServerError, mlflow_server, prefect_server, running
from minillm.errors import UserError
from minillm.params import load_params
from tasks.progress import _line
from tests.prefect_place import run_pipeline
from tests.scratch_repository import make_scratch_repository, run_in, set_param

_REPOSITORY = Path(__file__).parents[1]
_STAGES = ("prepare", "distill", "report")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scratch repository, which is the working directory; pages and stores are where they are by default."""
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_PORT", "PREFECT_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(make_scratch_repository(tmp_path))
    return tmp_path


def _run(stages: list[str] | None = None) -> Any:
    return run_pipeline(PipelineRequest(stages=stages or []))


def _artifacts(key: str) -> list[Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with get_client(sync_client=True) as client:
        return client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))


@pytest.mark.pipeline
def test_the_flow_makes_the_same_bytes_as_dvc_repro_and_then_skips_everything(
    prefect_api: None, root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    state = _run()
    assert state.result() == {name: "ran" for name in _STAGES}
    assert is_up_to_date(root)
    plain = make_scratch_repository(tmp_path_factory.mktemp("plain"))
    run_in(plain, sys.executable, "-m", "dvc", "repro")
    assert (root / "dvc.lock").read_text() == (plain / "dvc.lock").read_text()
    assert (root / "reports/report.html").read_bytes() == (plain / "reports/report.html").read_bytes()
    assert _run().result() == {name: "skipped" for name in _STAGES}


@pytest.mark.pipeline
def test_the_run_page_shows_progress_stages_and_results(prefect_api: None, root: Path) -> None:
    state = _run()
    run_id = state.state_details.flow_run_id
    [progress] = [found for found in _artifacts("distill-progress") if found.flow_run_id == run_id]
    assert float(progress.data) == 100.0
    [stages] = [found for found in _artifacts("stages") if found.flow_run_id == run_id]
    assert [(row["stage"], row["outcome"]) for row in json.loads(stages.data)] == [(name, "ran") for name in _STAGES]
    [results] = [found for found in _artifacts("results") if found.flow_run_id == run_id]
    assert json.loads(results.data) == [
        {"metric": "student/rougeL", "value": 25.5},
        {"metric": "num_rows", "value": 3},
    ]
    assert "http://127.0.0.1:5000" in results.description
    assert str(root / "reports/report.html") in results.description


@pytest.mark.pipeline
def test_stages_are_told_which_flow_run_they_belong_to(
    prefect_api: None, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = _run(["prepare"])
    assert state.result() == {"prepare": "ran"}
    assert f"pipeline key: {state.state_details.flow_run_id}" in caplog.messages


@pytest.mark.pipeline
def test_a_failing_stage_fails_the_flow_with_its_own_words_and_stops_it(prefect_api: None, root: Path) -> None:
    (root / "fail").write_text("distill")
    state = _run()
    assert state.is_failed()
    assert state.message == "stage distill failed with exit code 255: the fake stage was told to fail"
    cause = state.result(raise_on_failure=False)
    assert isinstance(cause, DvcError)
    assert cause.stage == "distill"
    assert not (root / "reports/report.html").exists()


@pytest.mark.pipeline
def test_wrong_params_are_refused_before_any_stage_starts(prefect_api: None, root: Path) -> None:
    set_param(root, "distill.num_phases", 0)
    state = _run()
    assert state.is_failed()
    assert state.message.startswith("params.yaml: distill.num_phases: ")
    assert "\n" not in state.message
    assert not (root / "dvc.lock").exists()


@pytest.mark.pipeline
def test_an_unknown_stage_is_refused(prefect_api: None, root: Path) -> None:
    assert _run(["distil"]).message == "unknown stage 'distil'; dvc.yaml has: prepare, distill, report"


@pytest.mark.pipeline
def test_the_command_brings_its_own_server_and_ends_a_failure_without_a_traceback(root: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        unused = str(probe.getsockname()[1])
    (root / "fail").write_text("distill")
    environment = child_environment({"PYTHONPATH": str(_REPOSITORY), "PREFECT_PORT": unused, "PREFECT_API_URL": ""})
    command = [sys.executable, "-m", "flows", "prepare", "distill"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()
    assert "error: stage distill failed with exit code 255: the fake stage was told to fail" in last
    assert "  | the fake stage was told to fail" in last
    assert last[-1] == "Mend the cause and run the same command again: finished stages are not repeated."
    assert "Traceback" not in done.stdout + done.stderr
    assert (root / "prepared/rows.txt").read_text() == "prepare"
    assert (root / ".servers/prefect/prefect.db").exists()


@pytest.mark.parametrize("module", ["flows", "flows.local"])
def test_a_param_out_of_range_ends_in_one_line(root: Path, module: str) -> None:
    set_param(root, "distill.minillm.gamma", 7.0)
    environment = child_environment({"PYTHONPATH": str(_REPOSITORY)})
    done = subprocess.run([sys.executable, "-m", module], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith("error: params.yaml: distill.minillm.gamma: ")


def test_a_local_run_records_what_ran_how_long_and_its_memory(root: Path) -> None:
    run_and_record(root, {})
    first = json.loads((root / "metrics/run.json").read_text())
    assert {name: stage["outcome"] for name, stage in first["stages"].items()} == dict.fromkeys(_STAGES, "ran")
    assert 0 < sum(stage["wall_s"] for stage in first["stages"].values()) < first["wall_s"]
    run_and_record(root, {})
    second = json.loads((root / "metrics/run.json").read_text())
    assert second["stages"] == {name: {"outcome": "skipped", "wall_s": 0.0} for name in _STAGES}
    assert second["wall_s"] > 0
    assert set(second) == {"wall_s", "peak_rss_mib", "stages"}


def test_a_local_run_keeps_the_exit_code_of_dvc_and_the_record_of_the_last_good_run(root: Path) -> None:
    (root / "metrics").mkdir()
    (root / "metrics/run.json").write_text("the last good run")
    (root / "fail").write_text("distill")
    environment = child_environment({"PYTHONPATH": str(_REPOSITORY)})
    command = [sys.executable, "-m", "flows.local"]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 255
    assert "the fake stage was told to fail" in done.stderr.splitlines()
    assert "error: stage distill failed with exit code 255" in done.stderr.splitlines()
    assert "Traceback" not in done.stdout + done.stderr
    assert (root / "metrics/run.json").read_text() == "the last good run"


def test_peak_memory_is_that_of_a_process_and_its_descendants_together() -> None:
    hold = "import subprocess, sys, time; held = b'x' * 2**26; time.sleep(0.1)"
    code = f"{hold}; subprocess.run([sys.executable, '-c', sys.argv[1]])"
    memory = PeakMemory()
    with subprocess.Popen([sys.executable, "-c", code, f"{hold}; time.sleep(1.5)"]) as process:
        memory.watch(process.pid)
    assert 128 <= memory.peak_mib <= 192  # two interpreters beside the held 2 x 64 MiB


def test_the_flow_asks_for_no_retry_no_cache_and_keeps_no_result(prefect_api: None) -> None:
    from prefect.cache_policies import NO_CACHE

    from flows.stage_task import run_stage

    assert (run_stage.retries, run_stage.cache_policy, run_stage.persist_result) == (0, NO_CACHE, False)


def test_the_progress_lines_of_the_stages_are_understood() -> None:
    progress = parse_progress(_line("teacher: training", 20, 80, 10.0, 0))
    assert progress is not None
    assert (progress.name, progress.percent) == ("teacher: training", 25.0)
    assert progress.text == "teacher: training: 20 of 80, 2.00/s, 0:30 left"


def test_the_rate_of_a_stage_that_goes_on_counts_what_it_did_itself() -> None:
    assert _line("teacher", 50, 80, 10.0, 30) == "teacher: 50/80 (62%) 2.00/s ETA 0:15"


@pytest.mark.parametrize("line", ["", "loss 1/2", "x: 1/0 (0%) 1.00/s ETA 0:00", "x: 1/2 (50%) 1.00/s ETA 0:01 now"])
def test_other_lines_are_no_progress(line: str) -> None:
    assert parse_progress(line) is None


def test_a_port_in_use_is_named_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        servers = [mlflow_server(f"http://127.0.0.1:{port}", "sqlite:///mlflow.db")]
        message = rf"port {port} is in use; .* MLFLOW_PORT=\.\.\."
        with pytest.raises(ServerError, match=message), running(tmp_path, servers):
            pass
    assert not (tmp_path / ".servers").exists()


def test_the_pages_of_prefect_ask_their_own_port(tmp_path: Path) -> None:
    assert prefect_server("http://127.0.0.1:4321").environment["PREFECT_UI_API_URL"] == "http://127.0.0.1:4321/api"


def test_the_pages_are_where_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_PORT", "5050")
    monkeypatch.setenv("PREFECT_PORT", "4250")
    tracking = load_params(_REPOSITORY / "params.yaml").tracking
    assert (mlflow_url(tracking), prefect_url()) == ("http://127.0.0.1:5050", "http://127.0.0.1:4250")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:secret@mlflow.example")
    assert mlflow_url(tracking) == "https://***@mlflow.example"
    monkeypatch.setenv("PREFECT_PORT", "forty")
    with pytest.raises(UserError, match=r"PREFECT_PORT: a port from 1 to 65535 is needed \(got 'forty'\)"):
        prefect_url()
