"""What the comparison does to a workspace: nothing that stays, with stand-ins and with real `dvc exp run`s."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from flows import compare
from flows.compare_workspace import kept_workspace
from flows.environment import child_environment
from minillm.config import Params
from minillm.errors import UserError
from minillm.params import load_params
from tests.compare_example import COMMIT, GRAPH, ROOT, STAGE, edit, make_repository, stand_in, state
from tests.scratch_repository import make_scratch_repository, run_in, set_param


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with params.yaml, in which `dvc exp run` is replaced by something quick."""
    return make_repository(tmp_path, monkeypatch)


def test_a_run_takes_over_no_knob_of_the_run_before(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def watching(root: Path, name: str, settings: dict[str, Any]) -> Params:
        params = stand_in(root, name, settings)
        seen.append((params.seed, params.distill.objective.length_normalize, params.distill.rollout.teacher_mix_alpha))
        return params

    monkeypatch.setattr(compare, "run_experiment", watching)
    own = load_params(root / "params.yaml").distill
    compare.main(["--variants", "minillm-no-length", "minillm-no-mixing", "minillm", "--seeds", "5"])
    length, mixing = own.objective.length_normalize, own.rollout.teacher_mix_alpha
    assert seen == [(5, False, mixing), (5, length, 0.0), (5, length, mixing)]


@pytest.mark.parametrize("error", [UserError("it failed"), KeyboardInterrupt(), None])
def test_the_workspace_is_given_back_byte_by_byte(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException | None
) -> None:
    def failing(root: Path, name: str, settings: dict[str, Any]) -> Params:
        params = stand_in(root, name, settings)
        if error is not None and "kd" in name:
            raise error
        return params

    monkeypatch.setattr(compare, "run_experiment", failing)
    edit(root)
    before = state(root)
    assert "MM params.yaml" in before["status"]
    exit_code = compare.main(["--variants", "kd", "sft", "--seeds", "17"])
    assert state(root) == before
    output = capsys.readouterr()
    if isinstance(error, KeyboardInterrupt):
        assert exit_code == 130 and output.err.startswith("interrupted; ")
    elif error is not None:
        assert exit_code == 1 and output.err == "failed: kd, seed 17: it failed\n"
        assert "| sft " in output.out and "| kd " not in output.out and "1 of 2 runs failed: kd 17." in output.out
    else:
        assert exit_code == 0 and "| kd " in output.out


@pytest.mark.parametrize("is_edited", [False, True])
def test_after_a_kill_the_next_comparison_gives_the_workspace_back_first(root: Path, is_edited: bool) -> None:
    edit(root)
    before = state(root)
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom tests import compare_example\n"
        "from flows.compare_workspace import kept_workspace\n"
        "from minillm.params import read_yaml\nroot, knobs = Path.cwd(), {'seed': 99}\n"
        "with kept_workspace(root) as workspace:\n"
        "    workspace.start(compare_example.with_settings(read_yaml(root / 'params.yaml'), knobs))\n"
        "    compare_example.stand_in(root, 'x', knobs)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    environment = child_environment({"PYTHONPATH": str(ROOT)})
    assert subprocess.run([sys.executable, "-c", code], cwd=root, env=environment).returncode == -signal.SIGKILL
    assert load_params(root / "params.yaml").seed == 99 and (root / "dvc.lock").exists()
    if is_edited:
        set_param(root, "seed", 98)
    with kept_workspace(root):
        assert load_params(root / "params.yaml").seed == (98 if is_edited else 17)
    assert run_in(root, "git", "symbolic-ref", "HEAD").stdout == before["branch"]
    assert is_edited or state(root) == before


def test_a_commit_made_meanwhile_keeps_its_index(root: Path) -> None:
    with kept_workspace(root) as workspace:
        workspace.start({})
        (root / "new").write_text("new")
        run_in(root, "git", "add", "new")
        run_in(root, *COMMIT)
    assert run_in(root, "git", "status", "--short").stdout == ""


def test_two_comparisons_do_not_meet_and_git_is_needed(
    root: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flows.placement._ENDING_S", 0)
    with kept_workspace(root), pytest.raises(UserError, match="another comparison"), kept_workspace(root):
        pass
    plain = tmp_path_factory.mktemp("plain")
    (plain / "dvc.yaml").write_text(GRAPH)
    with pytest.raises(UserError, match="needs a git repository with a commit"), kept_workspace(plain):
        pass


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git and DVC repository with stand-in stages that have run once, and an edited params.yaml."""
    root = make_scratch_repository(tmp_path_factory.mktemp("scratch"))
    (root / "stage.py").write_text(STAGE)
    (root / "dvc.yaml").write_text(GRAPH)
    with (root / ".gitignore").open("a") as file:
        file.write("/started\n")
    run_in(root, sys.executable, "-m", "dvc", "repro")
    run_in(root, "git", "add", "--all")
    run_in(root, *COMMIT)
    edit(root)
    return root


def _environment(**variables: str) -> dict[str, str]:
    return {**child_environment({"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": ""}), **variables}


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows.compare", *arguments]


@pytest.mark.pipeline
def test_real_experiments_go_on_after_a_failure_and_are_not_run_again(scratch: Path) -> None:
    before = state(scratch)
    command = _command("--variants", "gkd", "reverse_kd", "--seeds", "17")
    first = subprocess.run(command, cwd=scratch, env=_environment(FAILING="gkd"), capture_output=True, text=True)
    assert first.returncode == 1 and "failed: gkd, seed 17: dvc exp run ended with exit code" in first.stderr
    assert "Traceback" not in first.stdout + first.stderr
    assert state(scratch) == before
    assert run_in(scratch, sys.executable, "-m", "dvc", "status").stdout.startswith("Data and pipelines are up to date")
    second = subprocess.run(command, cwd=scratch, env=_environment(), capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("Running stage 'distill'") == 1 and "Stage 'distill' is cached" in second.stdout
    results = json.loads((scratch / "metrics/compare.json").read_text())
    found = {
        variant: (seeds["17"]["models"]["student"]["rougeL"], seeds["17"]["cost"]) for variant, seeds in results.items()
    }
    cost = {"wall_s": 1.0, "cpu_s": 117.0, "peak_rss_mib": 1.0}
    assert found == {"gkd": (53.0, cost), "reverse_kd": (60.0, cost)}  # 50 and the letters of the name
    assert state(scratch) == before
    listed = run_in(scratch, sys.executable, "-m", "dvc", "exp", "list", "--name-only").stdout.split()
    assert sorted(listed) == ["compare-gkd-17", "compare-reverse_kd-17"]
    assert _mlflow_parents(scratch) == {name: (name, "FINISHED", name.split("-")[1], "17") for name in listed}


def _mlflow_parents(root: Path) -> dict[str, tuple[str, ...]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root}/mlflow.db")
    experiment = client.get_experiment_by_name("minillm")
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'pipeline'")
    return {
        run.info.run_name: (
            run.data.tags["dvc.experiment"],
            run.info.status,
            run.data.params["distill.method"],
            run.data.params["seed"],
        )
        for run in runs
    }


@pytest.mark.pipeline
@pytest.mark.parametrize(
    ("arguments", "sleeping", "number", "exit_code"),
    [
        (["flows.compare", "--variants", "grpo", "--seeds", "17"], "grpo", signal.SIGTERM, 143),
        (["flows.seeds", "18"], "minillm", signal.SIGINT, 130),
        (["flows.seeds", "18"], "minillm", signal.SIGTERM, 143),
    ],
)
def test_real_experiments_that_are_ended_give_the_workspace_back(
    scratch: Path, arguments: list[str], sleeping: str, number: signal.Signals, exit_code: int
) -> None:
    before = state(scratch)
    # A shell starts what runs in its background with SIGINT ignored, and children inherit that.
    heed = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    command, environment = [sys.executable, "-m", *arguments], _environment(SLEEPING=sleeping)
    with subprocess.Popen(
        command, cwd=scratch, env=environment, stderr=subprocess.PIPE, text=True, preexec_fn=heed
    ) as process:
        assert process.stderr is not None
        while not (scratch / "started").exists():
            assert process.poll() is None
            time.sleep(0.1)
        (scratch / "started").unlink()
        os.kill(process.pid, number)
        told = process.stderr.read()
    assert process.returncode == exit_code and "flows/" not in told  # a traceback of ours
    assert state(scratch) == before
