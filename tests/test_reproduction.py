"""What `dvc repro` did is understood, and nothing that it started outlives us: real DVC on a scratch repository."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import pytest

from flows.dvc_process import dvc_command, is_up_to_date
from flows.environment import child_environment
from flows.processes import wait_until
from flows.reproduction import DvcError, StageClock, StageRun, reproduce, reproduction
from minillm.errors import UserError
from tests.scratch_repository import make_scratch_repository, set_param

_REPOSITORY = Path(__file__).parents[1]
_START_TIMEOUT_S = 60.0
_END_TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository whose pipeline has run; tests leave it as they found it."""
    root = make_scratch_repository(tmp_path_factory.mktemp("finished"))
    _outcomes(root)
    return root


def _outcomes(root: Path, stage: str | None = None) -> dict[str, str]:
    return {name: run.outcome for name, run in reproduce(root, stage, lambda line: None, {}).items()}


@contextmanager
def _phases(root: Path, number: int) -> Iterator[None]:
    """Edit a parameter of `distill` for a while; a number that another test took would be restored, not run."""
    path = root / "params.yaml"
    text = path.read_text()
    set_param(root, "distill.num_phases", number)
    try:
        yield
    finally:
        path.write_text(text)


def test_a_first_run_runs_every_stage_in_graph_order_and_leaves_dvc_clean(tmp_path: Path) -> None:
    root = make_scratch_repository(tmp_path)
    assert not is_up_to_date(root)
    runs = reproduce(root, None, lambda line: None, {})
    assert [(name, run.outcome) for name, run in runs.items()] == [
        ("prepare", "ran"),
        ("distill", "ran"),
        ("report", "ran"),
    ]
    assert all(run.wall_s > 0 for run in runs.values())
    assert (root / "reports/report.html").read_text() == "reportdistillprepare"
    assert is_up_to_date(root)


def test_what_did_not_change_is_skipped_in_no_time(finished: Path) -> None:
    runs = reproduce(finished, None, lambda line: None, {})
    assert runs == {name: StageRun("skipped", 0.0) for name in ("prepare", "distill", "report")}


def test_an_edited_parameter_reruns_its_stage_and_taking_it_back_restores_it(finished: Path) -> None:
    with _phases(finished, 1001):
        assert _outcomes(finished) == {"prepare": "skipped", "distill": "ran", "report": "skipped"}
    assert _outcomes(finished) == {"prepare": "skipped", "distill": "restored", "report": "skipped"}


def test_a_single_stage_is_run_without_those_before_it(tmp_path: Path) -> None:
    root = make_scratch_repository(tmp_path)
    assert _outcomes(root, "prepare") == {"prepare": "ran"}
    set_param(root, "seed", 12345)
    assert _outcomes(root, "distill") == {"distill": "ran"}


def test_lines_and_environment_pass_through(tmp_path: Path) -> None:
    root, lines = make_scratch_repository(tmp_path), list[str]()
    reproduce(root, "prepare", lines.append, {"MINILLM_PIPELINE_KEY": "the-key"})
    assert "prepare: 2/2 (100%) 4.00/s ETA 0:00" in lines
    assert "pipeline key: the-key" in lines
    assert f"interpreter directory: {Path(sys.executable).parent}" in lines


def test_a_failing_stage_is_named_with_its_last_lines(finished: Path) -> None:
    (finished / "fail").write_text("distill")
    try:
        with (
            _phases(finished, 1002),
            pytest.raises(DvcError, match="stage distill failed with exit code 255") as caught,
        ):
            reproduce(finished, None, lambda line: None, {})
    finally:
        (finished / "fail").unlink()
    assert (caught.value.stage, caught.value.exit_code) == ("distill", 255)
    assert "the fake stage was told to fail" in caught.value.lines


def test_one_process_serves_several_stages_and_each_gets_its_own_lines(tmp_path: Path) -> None:
    root, names, pids = make_scratch_repository(tmp_path), ("prepare", "distill", "report"), list[int]()
    lines: dict[str, list[str]] = {name: [] for name in names}
    with reproduction(root, names, {}, on_start=pids.append) as work:
        runs = {name: work.read_stage(name, lines[name].append) for name in names}
    assert len(pids) == 1 and {run.outcome for run in runs.values()} == {"ran"}
    for name in names:
        own = [line for line in lines[name] if line.startswith(("Running stage", "> ")) or "(100%)" in line]
        assert own[0] == f"Running stage '{name}':" and own[1].startswith(f"> python stage.py {name} ")
        assert own[2:] == [f"{name}: 2/2 (100%) 4.00/s ETA 0:00"]


def test_of_several_stages_the_one_that_fails_is_named_with_its_own_lines(tmp_path: Path) -> None:
    root = make_scratch_repository(tmp_path)
    (root / "fail").write_text("distill")
    with reproduction(root, ("prepare", "distill", "report"), {}) as work:
        assert work.read_stage("prepare", lambda line: None).outcome == "ran"
        with pytest.raises(DvcError, match="stage distill failed with exit code 255") as caught:
            work.read_stage("distill", lambda line: None)
    assert "the fake stage was told to fail" in caught.value.lines
    assert not [line for line in caught.value.lines if "prepare:" in line]


def test_a_stage_that_dvc_refuses_to_begin_is_not_blamed_on_the_one_before_it(tmp_path: Path) -> None:
    root = make_scratch_repository(tmp_path)
    graph = (root / "dvc.yaml").read_text()
    (root / "dvc.yaml").write_text(graph.replace("deps: [distilled.txt]", "deps: [distilled.txt, absent.txt]"))
    with reproduction(root, ("prepare", "distill", "report"), {}) as work:
        assert work.read_stage("prepare", lambda line: None).outcome == "ran"
        assert work.read_stage("distill", lambda line: None).outcome == "ran"
        with pytest.raises(DvcError, match="stage report failed") as caught:
            work.read_stage("report", lambda line: None)
    assert "absent.txt" in caught.value.lines[-1]


def test_a_directory_without_dvc_is_a_one_line_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no \.dvc directory; run this in the root of the repository$"):
        reproduce(tmp_path, None, lambda line: None, {})


@contextmanager
def _run_that_hangs(root: Path) -> Iterator[tuple[subprocess.Popen[bytes], psutil.Process]]:
    """Yield a process that reproduces, and the process of its stage, which sleeps for ten minutes."""
    (root / "sleep").write_text("distill")
    environment = child_environment({"PYTHONPATH": str(_REPOSITORY)})
    command = [sys.executable, "-m", "flows.local"]
    # A shell starts what runs in its background with SIGINT ignored, and children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    runner = subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.DEVNULL, preexec_fn=heed)
    stage: psutil.Process | None = None
    try:
        assert wait_until(lambda: (root / "started").exists(), _START_TIMEOUT_S)
        stage = psutil.Process(int((root / "started").read_text()))
        yield runner, stage
    finally:
        runner.kill()
        runner.wait()
        if stage is not None and stage.is_running():
            stage.kill()


def _has_ended(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_fault_09_no_stage_outlives_us_whatever_signal_ends_us(tmp_path: Path, number: signal.Signals) -> None:
    root = make_scratch_repository(tmp_path)
    with _run_that_hangs(root) as (runner, stage):
        dvc = psutil.Process(runner.pid).children()[0]
        runner.send_signal(number)
        assert wait_until(lambda: _has_ended(stage) and _has_ended(dvc), _END_TIMEOUT_S)
        assert runner.wait(_END_TIMEOUT_S) != 0
    (root / "sleep").unlink()
    assert _outcomes(root) == {"prepare": "skipped", "distill": "ran", "report": "ran"}


def test_fault_06_of_two_runs_one_is_refused_and_the_other_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.dvc_lock._LEFTOVER_S", 0.5)
    root = make_scratch_repository(tmp_path)
    with _run_that_hangs(root) as (_, stage):
        with pytest.raises(UserError, match="another run works here"):
            reproduce(root, None, lambda line: None, {})
        plain = subprocess.run(
            dvc_command("repro"), cwd=root, env=child_environment({}), capture_output=True, text=True
        )
        assert plain.returncode == 255 and "busy" in plain.stderr
        assert not _has_ended(stage) and (root / "started").read_text() == str(stage.pid)


def test_fault_09_no_stage_outlives_its_dvc(tmp_path: Path) -> None:
    root = make_scratch_repository(tmp_path)
    with _run_that_hangs(root) as (runner, stage):
        next(child for child in psutil.Process(runner.pid).children() if "dvc" in child.cmdline()).kill()
        assert wait_until(lambda: _has_ended(stage), _END_TIMEOUT_S)
        assert runner.wait(_END_TIMEOUT_S) != 0


def test_the_clock_gives_each_stage_the_time_until_the_next_one() -> None:
    clock = StageClock()
    for now_s, line in enumerate(
        [
            "Stage 'prepare' didn't change, skipping",
            "Running stage 'teacher':",
            "> python -m tasks teacher",
            "Stage 'warmup' is cached - skipping run, checking out outputs",
            "a line about Running stage 'distill': in a sentence",
            "Running stage 'distill':",
        ]
    ):
        clock.read(line, float(now_s))
    assert clock.current == "distill"
    clock.close(7.5)
    assert clock.stages() == {
        "prepare": StageRun("skipped", 0.0),
        "teacher": StageRun("ran", 2.0),
        "warmup": StageRun("restored", 2.0),
        "distill": StageRun("ran", 2.5),
    }


def test_this_interpreter_comes_first_and_telemetry_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    monkeypatch.setenv("DVC_NO_ANALYTICS", "")
    environment = child_environment({"EXTRA": "1"})
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert (environment["SHELL"], environment["DVC_NO_ANALYTICS"], environment["EXTRA"]) == ("/bin/sh", "1", "1")
