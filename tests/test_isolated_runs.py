"""Runs apart from the checkout: a worktree and params of their own, the shared cache, and a named DVC experiment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

import flows.pipeline
from flows import experiments
from flows.compare_workspace import kept_workspace
from flows.dvc_lock import WORKTREES_DIR
from flows.dvc_process import dvc, is_up_to_date
from flows.placement import RunFacts, placed
from flows.request import PipelineRequest
from minillm.errors import UserError
from minillm.params import load_params
from tests.prefect_place import run_pipeline
from tests.scratch_repository import commit_all, make_scratch_repository, run_in, set_param

pytestmark = pytest.mark.pipeline

_BY_HAND = RunFacts("0-1", "calm-fox", is_scheduled=False, is_retry=False)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scratch repository with a commit, which is the working directory."""
    monkeypatch.chdir(commit_all(make_scratch_repository(tmp_path / "scratch")))
    return Path.cwd()


def _state_of(root: Path) -> dict[str, bytes]:
    """Return what git and the user see of a checkout."""
    shown = run_in(root, "git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines()
    return {name: (root / name).read_bytes() for name in shown}


def _request(**fields: Any) -> PipelineRequest:
    return PipelineRequest.model_validate(fields)


def test_a_run_with_overrides_leaves_the_checkout_alone_and_ends_as_an_experiment(
    prefect_api: None, root: Path
) -> None:
    before = _state_of(root)
    state = run_pipeline(_request(overrides={"num_phases": 7}, experiment="seven"))
    assert state.result() == {"prepare": "ran", "distill": "ran", "report": "ran"}
    assert _state_of(root) == before
    assert not list((root / WORKTREES_DIR).glob("*/"))
    assert experiments.names(root) == ["seven"]
    dvc(root, "exp", "apply", "seven")
    assert is_up_to_date(root)
    assert load_params(root / "params.yaml").distill.num_phases == 7
    assert (root / "reports/report.html").read_text() == "reportdistillprepare"
    assert "# phases of texts and updates" in (root / "params.yaml").read_text()  # comments live
    assert (root / "metrics/report.json").exists()


def test_what_another_run_has_made_is_taken_from_the_cache(prefect_api: None, root: Path) -> None:
    assert run_pipeline(_request()).result()["prepare"] == "ran"
    state = run_pipeline(_request(overrides={"num_phases": 7}))
    assert state.result() == {"prepare": "restored", "distill": "ran", "report": "restored"}


def test_an_experiment_has_only_the_stages_that_were_done(prefect_api: None, root: Path) -> None:
    run_pipeline(_request(overrides={"num_phases": 7}, stages=["prepare"], experiment="begun"))
    experiments.apply(root, "begun")
    assert is_up_to_date(root, "prepare")
    assert not is_up_to_date(root, "distill")


def test_a_failed_run_keeps_its_workspace_and_a_retry_takes_it(prefect_api: None, root: Path) -> None:
    (root / "fail").write_text("distill")
    commit_all(root)
    state = run_pipeline(_request(overrides={"num_phases": 7}, experiment="seven"))
    assert state.is_failed() and "the fake stage was told to fail" in state.message
    [kept] = (root / WORKTREES_DIR).glob("*/")
    (kept / "fail").unlink()
    assert run_pipeline(_request(overrides={"num_phases": 7}, experiment="seven")).result() == {
        "prepare": "skipped",
        "distill": "ran",
        "report": "ran",
    }
    assert not kept.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"overrides": {"other": {"distill.minillm.gamma": 7}}}, "params of this run: distill.minillm.gamma: .* 1"),
        ({"overrides": {"other": {"distill.gama": 1}}}, "params of this run: distill.gama: unknown key"),
        ({"overrides": {"rollouts_per_phase": 63}}, "params of this run: distill: .*does not divide"),
        ({"experiment": "taken"}, "experiment 'taken' is there already; choose another name"),
    ],
)
def test_what_cannot_be_is_refused_before_a_workspace_is_made(root: Path, fields: Any, message: str) -> None:
    run_in(root, sys.executable, "-m", "dvc", "repro", "--quiet")
    experiments.save(root, "taken", ["prepare", "distill", "report"])
    with pytest.raises(UserError, match=message), placed(root, _request(**fields), _BY_HAND, print):
        pass
    assert not list((root / WORKTREES_DIR).glob("*/"))


def test_a_run_by_hand_as_params_yaml_has_it_works_in_the_checkout(root: Path) -> None:
    with placed(root, _request(), _BY_HAND, print) as place:
        assert (place.path, place.experiment) == (root, "")


def test_a_scheduled_run_and_one_beside_another_work_apart(root: Path) -> None:
    with placed(root, _request(), RunFacts("0-2", "nightly-owl", is_scheduled=True, is_retry=False), print) as place:
        assert place.path.parent == root / WORKTREES_DIR
        assert place.experiment == "nightly-owl"
    with placed(root, _request(), _BY_HAND, print), placed(root, _request(), _BY_HAND, print) as second:
        assert second.path.parent == root / WORKTREES_DIR


def test_a_run_beside_a_comparison_works_apart_also_between_two_experiments(root: Path) -> None:
    with kept_workspace(root) as workspace:
        workspace.start({})
        with placed(root, _request(), _BY_HAND, print) as place:
            assert place.path.parent == root / WORKTREES_DIR


def test_a_comparison_beside_a_run_in_the_checkout_is_told_of_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.placement._ENDING_S", 0)
    told = rf"another Prefect run calm-fox works here \(pid {os.getpid()}\)"
    with placed(root, _request(), _BY_HAND, print), pytest.raises(UserError, match=told), kept_workspace(root):
        pass


def test_edits_that_are_not_committed_are_said_to_be_left_out(root: Path) -> None:
    set_param(root, "seed", 5)
    for name in ("data/raw/own.jsonl", "flows/new.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("")
    said: list[str] = []
    with placed(root, _request(experiment="mine"), _BY_HAND, said.append) as place:
        assert place.params.seed == 17
    assert said[0].endswith("not in it are your edits of params.yaml, flows/new.py")  # raw data are linked


def test_two_runs_of_the_same_content_do_not_work_at_once(root: Path) -> None:
    entered, said = threading.Event(), threading.Event()

    def second() -> None:
        with placed(root, _request(experiment="two"), _BY_HAND, lambda text: said.set() if "waiting" in text else None):
            entered.set()

    with placed(root, _request(experiment="one"), _BY_HAND, print):
        thread = threading.Thread(target=second)
        thread.start()
        assert said.wait(60)
        assert not entered.is_set()
    thread.join(60)
    assert entered.is_set()


def test_a_workspace_whose_making_was_cut_is_made_again(root: Path) -> None:
    with pytest.raises(KeyboardInterrupt), placed(root, _request(experiment="cut"), _BY_HAND, print) as place:
        path = place.path
        raise KeyboardInterrupt
    (path / "state/ready").unlink()
    shutil.rmtree(path / ".dvc")
    with placed(root, _request(experiment="cut"), _BY_HAND, print) as place:
        assert place.path == path
        assert (path / ".dvc/config.local").exists()


def test_untracked_data_and_models_are_there(root: Path) -> None:
    for name in ("data/raw/mine.jsonl", "my-teacher/config.json"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("{}")
    settings = {"teacher_model.source": "path", "teacher_model.location": "my-teacher"}
    with placed(root, _request(overrides={"other": settings}), _BY_HAND, print) as place:
        assert (place.path / "data/raw/mine.jsonl").read_text() == "{}"
        assert (place.path / "my-teacher/config.json").read_text() == "{}"
    assert (root / "my-teacher/config.json").exists()  # the workspace had links, and is gone


def test_a_model_that_is_not_whole_is_refused_before_any_stage_starts(prefect_api: None, root: Path) -> None:
    (root / "my-teacher").mkdir()
    settings = {"teacher_model.source": "path", "teacher_model.location": "my-teacher"}
    state = run_pipeline(_request(overrides={"other": settings}))
    assert state.is_failed() and "my-teacher" in state.message
    assert not list((root / WORKTREES_DIR).glob("*/prepared"))


def test_two_savers_at_once_both_succeed(root: Path) -> None:
    """`dvc exp save` alone fails for one of two worktrees that call it together."""
    run_in(root, sys.executable, "-m", "dvc", "repro", "--quiet")
    calls = "from flows.experiments import save; save(Path(), sys.argv[1], ['prepare'])"
    code = f"import sys; from pathlib import Path; {calls}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    savers = []
    for name in ("one", "two", "three"):
        path = root / f"../{name}"
        run_in(root, "git", "worktree", "add", "--quiet", "--detach", str(path))
        dvc(path, "cache", "dir", "--local", str(root / ".dvc/cache"))
        run_in(path, sys.executable, "-m", "dvc", "repro", "--quiet")
        savers.append(subprocess.Popen([sys.executable, "-c", code, name], cwd=path, env=environment))
    assert [saver.wait(120) for saver in savers] == [0, 0, 0]
    assert sorted(experiments.names(root)) == ["one", "three", "two"]


def test_inputs_edited_before_the_end_are_not_recorded_as_those_of_the_outputs(root: Path) -> None:
    run_in(root, sys.executable, "-m", "dvc", "repro", "--quiet")
    record = (root / "dvc.lock").read_bytes()
    set_param(root, "seed", 5)
    with pytest.raises(UserError, match="inputs of its stages were edited meanwhile"):
        experiments.save(root, "false", ["prepare", "distill", "report"])
    assert experiments.names(root) == []
    assert (root / "dvc.lock").read_bytes() == record
    with pytest.raises(UserError, match="no stage is done"):
        experiments.save(root, "nothing", [])


def test_a_student_of_inputs_that_were_edited_is_not_registered(
    prefect_api: None, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered: list[Path] = []
    monkeypatch.setattr(flows.pipeline, "registry_line", lambda *_: registered.append(Path.cwd()) or "")
    request = _request(overrides={"other": {"tracking.enabled": True}}, experiment="one")
    assert run_pipeline(request).is_completed() and len(registered) == 1
    stages = flows.pipeline._stages

    def edited(*arguments: Any) -> Any:
        runs = stages(*arguments)
        set_param(Path.cwd(), "seed", 5)
        return runs

    monkeypatch.setattr(flows.pipeline, "_stages", edited)
    state = run_pipeline(request.model_copy(update={"experiment": "two"}))
    assert state.is_failed() and "inputs of its stages were edited meanwhile" in state.message
    assert len(registered) == 1


def test_two_runs_at_once_cannot_end_as_one_experiment(root: Path) -> None:
    first = _request(experiment="one", overrides={"num_phases": 7})
    second = _request(experiment="one", overrides={"num_phases": 8})
    with (
        placed(root, first, _BY_HAND, print),
        pytest.raises(UserError, match="experiment 'one': another run at work will end as that"),
        placed(root, second, RunFacts("0-3", "late-owl", is_scheduled=False, is_retry=False), print),
    ):
        pass


def test_a_retry_stays_in_the_place_of_its_first_try(root: Path) -> None:
    retry = RunFacts("0-1", "calm-fox", is_scheduled=False, is_retry=True)
    with pytest.raises(KeyError), placed(root, _request(), _BY_HAND, print):
        raise KeyError
    with placed(root, _request(), RunFacts("0-4", "other-owl", is_scheduled=False, is_retry=False), print):
        refused = pytest.raises(
            UserError, match=r"another run works in the checkout, as this one did \(Prefect run oth"
        )
        with refused, placed(root, _request(), retry, print):
            pass
    with placed(root, _request(), retry, print) as place:
        assert place.path == root


@pytest.mark.parametrize("left", ["locked by a killed git", "half removed"])
def test_the_ruin_of_a_workspace_is_made_anew(root: Path, left: str) -> None:
    with pytest.raises(KeyError), placed(root, _request(experiment="cut"), _BY_HAND, print) as place:
        raise KeyError
    (place.path / "state/ready").unlink()
    if left == "half removed":
        (place.path / ".git").unlink()
    else:
        shutil.rmtree(place.path)
        (root / ".git/worktrees" / place.path.name / "locked").write_text("initializing")
    with placed(root, _request(experiment="cut"), _BY_HAND, print) as place:
        assert (place.path / "dvc.yaml").exists()


def test_worktrees_of_the_user_are_left_alone(root: Path) -> None:
    run_in(root, "git", "worktree", "add", "--quiet", "--detach", str(root.parent / "mine"))
    (root.parent / "mine").rename(root.parent / "not-mounted")
    with placed(root, _request(experiment="one"), _BY_HAND, print):
        pass
    (root.parent / "not-mounted").rename(root.parent / "mine")
    assert run_in(root.parent / "mine", "git", "status", "--short").stdout == ""


def test_a_preset_is_that_of_the_commit(root: Path) -> None:
    (root / "configs").mkdir()
    (root / "configs/grpo.yaml").write_text("distill: {num_phases: 8}\n")
    commit_all(root)
    (root / "configs/grpo.yaml").write_text("distill: {num_phases: 33}\n")
    with placed(root, _request(preset="grpo"), _BY_HAND, print) as place:
        assert place.params.distill.num_phases == 8


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"experiment": "HEAD"}, "experiment 'HEAD': git knows a commit by this name"),
        ({"overrides": {"other": {"seed": 1, "seed.x": 2}}}, "params of this run: seed.x: seed is given a value"),
    ],
)
def test_names_that_mean_something_else_are_refused(root: Path, fields: Any, message: str) -> None:
    with pytest.raises(UserError, match=message), placed(root, _request(**fields), _BY_HAND, print):
        pass


def test_a_run_may_have_any_name(root: Path) -> None:
    run = RunFacts("0-5", "My run/1: v1.2", is_scheduled=True, is_retry=False)
    with placed(root, _request(), run, print) as place:
        assert place.experiment == "My-run-1-v1-2"


def test_data_of_a_linked_directory_is_there_and_nothing_is_made_outside(root: Path) -> None:
    (root.parent / "store").mkdir()
    (root.parent / "store/mine.jsonl").write_text("{}")
    (root / "data/raw").mkdir(parents=True)
    (root / "data/raw/link").symlink_to(root.parent / "store")
    with placed(root, _request(experiment="one"), _BY_HAND, print) as place:
        assert (place.path / "data/raw/link/mine.jsonl").read_text() == "{}"
    outside = {"overrides": {"other": {"data.root": "../../../store"}}, "experiment": "two"}
    with placed(root, _request(**outside), _BY_HAND, print):
        assert not (root / "state/store").exists()
