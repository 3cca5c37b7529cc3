"""Every pipeline's run has every final metric, also of the stages that it did not have to run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from minillm.config import Params
from tasks.finals import recorded_finals
from tasks.tracking import finish_pipeline
from tests.mlflow_place import history, runs
from tests.tiny_pipeline import command, commit, set_knob

LISTING = """
import json
from mlflow.tracking import MlflowClient
client = MlflowClient("sqlite:///mlflow.db")
experiment = client.get_experiment_by_name("minillm").experiment_id
found = client.search_runs([experiment], "tags.kind = 'pipeline'", order_by=["attributes.start_time"])
versions = sorted(client.search_model_versions("name = 'minillm-student'"), key=lambda version: int(version.version))
print(json.dumps([
    [run.data.metrics for run in found],
    [version.run_id for version in versions], [run.info.run_id for run in found],
]))
"""


def test_metrics_of_cached_stages_go_to_the_run_of_the_pipeline(params: Params) -> None:
    Path("metrics").mkdir()
    Path("metrics/warmup.json").write_text('{"loss": 1.5, "kept_layers": [0, 2], "parameters": 7}')
    finish_pipeline(params, cached=["prepare", "warmup"])
    (parent,) = runs("pipeline")
    assert parent.data.metrics == {"warmup/loss": 1.5, "warmup/parameters": 7.0}
    assert history(parent, "warmup/loss") == [(0, 1.5)]


def test_stages_without_metrics_have_no_finals(tmp_path: Path) -> None:
    assert recorded_finals(["prepare", "unknown"], tmp_path) == {}


@pytest.mark.slow
@pytest.mark.pipeline
def test_pipelines_of_other_methods_and_of_cached_stages_have_the_same_metrics(
    finished_project: Path, tmp_path: Path
) -> None:
    root = Path(shutil.copytree(finished_project, tmp_path / "project", symlinks=True))
    said = []
    for knobs in ({"report.num_examples": 1}, {"distill.method": "kd", "student_model.num_layers": 1}):
        for knob, value in knobs.items():
            set_knob(root, knob, value)
        said.append(command(root, "python", "-m", "flows.local").stdout)
        commit(root, "knobs")
    metrics, registered, made = listing(root)
    assert len(metrics) == 3 and {name.partition("/")[0] for name in metrics[0]} == {
        "data",
        "teacher",
        "warmup",
        "distill",
        "evaluate_test",
        "final",
    }
    assert metrics[0] == metrics[1] and set(metrics[0]) == set(metrics[2])
    assert registered == [made[0], made[2]]  # the second pipeline made no new student
    assert "registry:" not in said[0] and "registry: minillm-student version 2 is" in said[1]


def listing(root: Path) -> Any:
    return json.loads(command(root, "python", "-c", LISTING).stdout.splitlines()[-1])
