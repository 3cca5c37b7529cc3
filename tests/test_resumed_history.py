"""A stage that was killed and goes on: MLflow's new run has every step once, as a run that was left alone has them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows.environment import child_environment
from minillm.failpoints import VARIABLE
from tests.tiny_pipeline import set_knob

pytestmark = pytest.mark.pipeline
_NUM_STEPS = 6
_OF_THE_MACHINE = ("time/", "memory/")


def trained(root: Path, failpoint: str = "") -> int:
    command = [sys.executable, "-m", "tasks", "warmup"]
    environment = {**child_environment({VARIABLE: failpoint}), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True).returncode


def last_run(root: Path) -> Any:
    client = client_of(root)
    experiment = client.get_experiment_by_name("minillm")
    runs = client.search_runs([experiment.experiment_id], "tags.`dvc.stage` = 'warmup'")
    return max(runs, key=lambda run: run.info.start_time)


def client_of(root: Path) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")


def history(root: Path) -> dict[str, list[tuple[int, float]]]:
    """Return the points of every metric of the last run in the order of their times."""
    client, run = client_of(root), last_run(root)
    points = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    return {
        name: [(point.step, point.value) for point in sorted(values, key=lambda point: (point.timestamp, point.step))]
        for name, values in points.items()
    }


@pytest.fixture(scope="module")
def roots(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two copies of a finished repository, to train six steps in, with a checkpoint behind each."""
    copies = [tmp_path_factory.mktemp("history") / name for name in ("alone", "killed")]
    for copy in copies:
        shutil.copytree(finished_project, copy, symlinks=True)
        set_knob(copy, "warmup.sft.num_steps", _NUM_STEPS)
        set_knob(copy, "checkpoint.every_s", 0)
    return copies


def test_fault_01_every_step_of_a_killed_stage_is_in_mlflow_once(roots: list[Path]) -> None:
    alone, killed = roots
    assert trained(alone) == 0
    assert trained(killed, "optimizer.before_step:3:kill") == -9
    assert trained(killed, "optimizer.before_step:2:kill") == -9
    assert trained(killed) == 0
    expected, found = history(alone), history(killed)
    assert found.keys() == expected.keys()
    assert [step for step, _ in found["train/loss"]] == list(range(1, _NUM_STEPS + 1))
    same = {name for name in expected if not name.startswith(_OF_THE_MACHINE)}
    assert {name: found[name] for name in same} == {name: expected[name] for name in same}
    for name in expected.keys() - same:
        assert [step for step, _ in found[name]] == [step for step, _ in expected[name]], name
    assert last_run(killed).data.tags["resumed_behind_step"] == "3"
    assert not list((killed / "state/mlflow").iterdir()) and os.listdir(killed / "models/warmup")
