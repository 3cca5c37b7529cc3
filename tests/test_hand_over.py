"""A stage on another machine: inputs go there and results come back by two remotes; nothing is computed twice."""

from __future__ import annotations

import sys
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from flows import experiments
from flows.dvc_lock import WORKTREES_DIR
from flows.dvc_process import dvc, is_up_to_date, stale_stages
from flows.hand_over import clear_away, fetch_result, require_remotes, send_inputs
from flows.placement import RunFacts, checkout_mark, placed
from flows.reproduction import reproduce
from flows.request import PipelineRequest, StageRequest
from minillm.errors import UserError
from tests.scratch_repository import commit_all, make_scratch_repository, run_in, set_param
from tests.two_clones import Clones, make_clones

pytestmark = pytest.mark.pipeline

_RUN = RunFacts("0-1", "calm-fox", is_scheduled=False, is_retry=False)


@pytest.fixture
def clones(tmp_path: Path) -> Clones:
    return make_clones(tmp_path)


def _run_stage(directory: Path, **fields: Any) -> Any:
    from flows.stage_flow import stage

    with chdir(directory):
        return stage(StageRequest.model_validate(fields), return_state=True)


def _quiet(line: str) -> None:
    """Take a line."""


def test_a_stage_goes_to_another_clone_and_comes_back(prefect_api: None, clones: Clones, tmp_path: Path) -> None:
    request = PipelineRequest.model_validate(
        {"overrides": {"num_phases": 7}, "gpu_pool": "gpu", "hand_over": "remotes", "experiment": "seven"}
    )
    with chdir(clones.cpu), placed(clones.cpu, request, _RUN, _quiet) as place:
        assert reproduce(place.path, "prepare", _quiet, {})["prepare"].outcome == "ran"
        send_inputs(place.path, "carrier", "distill")
        state = _run_stage(clones.gpu, stage="distill", experiment="carrier")
        assert state.is_completed() and state.message.startswith("ran in ")
        fetch_result(place.path, "carrier")
        clear_away(place.path, "carrier")
        assert is_up_to_date(place.path, "distill")
        outcomes = {name: reproduce(place.path, name, _quiet, {})[name].outcome for name in ("distill", "report")}
        assert outcomes == {"distill": "skipped", "report": "ran"}
        record = (place.path / "dvc.lock").read_text()
    alone = make_clones(tmp_path / "alone").cpu
    run_in(alone, "sed", "-i", "s/num_phases: 12 /num_phases: 7 /", "params.yaml")
    run_in(alone, sys.executable, "-m", "dvc", "repro", "--quiet")
    assert record == (alone / "dvc.lock").read_text()
    assert experiments.names(clones.cpu) == []
    assert "carrier" not in run_in(clones.git_remote, "git", "for-each-ref").stdout
    assert not list((clones.gpu / WORKTREES_DIR).glob("*/"))


def test_a_stage_that_failed_there_goes_on_in_the_workspace_that_it_left(prefect_api: None, clones: Clones) -> None:
    with chdir(clones.cpu):
        reproduce(clones.cpu, "prepare", _quiet, {})
        send_inputs(clones.cpu, "carrier", "report")
    (clones.gpu / ".git/info/exclude").write_text("/fail\n")
    failed = _run_stage(clones.gpu, stage="report", experiment="carrier")
    assert failed.is_failed()
    [kept] = (clones.gpu / WORKTREES_DIR).glob("*/")
    (kept / "state/training").mkdir()
    (kept / "state/training/checkpoint").write_text("half way")
    assert _run_stage(clones.gpu, stage="report", experiment="carrier").is_failed()
    assert (kept / "state/training/checkpoint").read_text() == "half way"


def test_a_worker_of_the_same_checkout_works_in_its_workspace(prefect_api: None, tmp_path: Path) -> None:
    root = commit_all(make_scratch_repository(tmp_path / "scratch"))
    request = PipelineRequest.model_validate({"overrides": {"num_phases": 7}})
    with chdir(root), placed(root, request, _RUN, _quiet) as place:
        reproduce(place.path, "prepare", _quiet, {})
        state = _run_stage(root, stage="distill", checkout=checkout_mark(root), workspace=place.key)
        assert state.is_completed()
        assert is_up_to_date(place.path, "distill")
    assert not (root / "distilled.txt").exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": "distill"}, "not the checkout of the pipeline; ask for hand_over: remotes"),
        ({"stage": "distill", "checkout": "0-0"}, "not the checkout of the pipeline; ask for hand_over: remotes"),
        ({"stage": "distill", "experiment": "carrier"}, "hand_over: git has no remote 'origin'"),
        ({"stage": "distil", "checkout": "own"}, "unknown stage 'distil'"),
        ({"stage": "distill", "checkout": "own", "workspace": "0" * 16}, "workspace 0000000000000000: not in"),
    ],
)
def test_what_a_worker_cannot_do_is_said_in_one_line(
    prefect_api: None, tmp_path: Path, fields: dict[str, str], message: str
) -> None:
    root = commit_all(make_scratch_repository(tmp_path / "scratch"))
    own = {"checkout": checkout_mark(root)} if fields.get("checkout") == "own" else {}
    state = _run_stage(root, **{**fields, **own})
    assert state.is_failed()
    assert message in state.message and "\n" not in state.message


def test_a_default_dvc_remote_is_asked_for(clones: Clones) -> None:
    require_remotes(clones.cpu)
    dvc(clones.cpu, "remote", "remove", "common")
    with pytest.raises(UserError, match="hand_over: DVC has no default remote"):
        require_remotes(clones.cpu)


@pytest.mark.parametrize("place", ["--project", "--local"])
def test_a_remote_by_a_relative_path_is_refused(clones: Clones, place: str) -> None:
    """`dvc exp push` reads the settings out of a commit, and would take the path as one from the root of the disk."""
    dvc(clones.cpu, "remote", "modify", place, "common", "url", "../store")
    with pytest.raises(UserError, match=r"DVC's remote 'common' is the relative path \.\./.*store, .*sets a full path"):
        require_remotes(clones.cpu)
    dvc(clones.cpu, "remote", "modify", "--local", "common", "url", "ssh://user@host/store")
    require_remotes(clones.cpu)


def test_only_the_stage_that_ran_there_is_recorded_as_done(prefect_api: None, clones: Clones) -> None:
    """The commit has a dvc.lock, so that a forced commit of all stages would have something to falsify."""
    (clones.cpu / "knobs-matter").touch()
    run_in(clones.cpu, sys.executable, "-m", "dvc", "repro", "--quiet")
    commit_all(clones.cpu)
    request = PipelineRequest.model_validate({"overrides": {"num_phases": 7}, "hand_over": "remotes"})
    with chdir(clones.cpu), placed(clones.cpu, request, _RUN, _quiet) as place:
        send_inputs(place.path, "carrier", "distill")
        state = _run_stage(clones.gpu, stage="distill", experiment="carrier")
        assert state.is_completed() and state.message.startswith("ran in ")
        fetch_result(place.path, "carrier")
        assert stale_stages(place.path) == {"report"}
        clear_away(place.path, "carrier")
    assert "carrier" not in run_in(clones.gpu, "git", "for-each-ref").stdout


def test_a_result_of_other_params_is_refused(clones: Clones) -> None:
    run_in(clones.cpu, sys.executable, "-m", "dvc", "repro", "--quiet")
    send_inputs(clones.cpu, "carrier", "distill")
    set_param(clones.cpu, "distill.num_phases", 9)
    run_in(clones.cpu, sys.executable, "-m", "dvc", "repro", "--quiet")
    experiments.save(clones.cpu, "carrier-done", ["distill"])
    experiments.send(clones.cpu, "carrier-done")
    with pytest.raises(UserError, match="carrier-done: it was made with other params than carrier asks for"):
        fetch_result(clones.cpu, "carrier")


def test_a_worker_of_the_same_checkout_does_not_wait_for_its_own_pipeline(prefect_api: None, clones: Clones) -> None:
    state = _run_stage(clones.cpu, stage="distill", experiment="carrier", checkout=checkout_mark(clones.cpu))
    assert state.is_failed() and "ask for hand_over: shared disk" in state.message
