"""The real pipeline on a tiny random teacher: dvc repro, its cache, experiments, MLflow and the Prefect flow."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.finals import recorded_finals
from tasks.runner import STAGES
from tests.tiny_pipeline import command, dvc, new_repository, set_knob

pytestmark = pytest.mark.pipeline
SPEED = {
    *("time/rollout_s", "time/score_s", "time/update_s", "time/rollout_tokens_per_s", "time/update_tokens_per_s"),
    *("padding/rollout_share", "padding/update_share", "teacher/calls", "memory/peak_mib"),
}


@pytest.fixture(scope="module")
def project(finished_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which `make run`'s command has run once, committed."""
    return Path(shutil.copytree(finished_project, tmp_path_factory.mktemp("pipeline") / "project", symlinks=True))


def ran(output: str) -> list[str]:
    return [stage for stage in STAGES if f"Running stage '{stage}'" in output]


def test_the_final_metrics_have_the_documented_form(project: Path) -> None:
    report = json.loads((project / "metrics/report.json").read_text())
    assert {name: set(values) for name, values in report.items()} == {
        "teacher": {"rougeL"},
        "warmup": {"rougeL", "reverse_kl"},
        "student": {"rougeL", "reverse_kl"},
    }
    evaluated = json.loads((project / "metrics/evaluate.json").read_text())
    for model, values in report.items():
        assert values["rougeL"] == pytest.approx(evaluated[model]["test"]["sampled"]["rougeL"])
        assert 0 <= values["rougeL"] <= 100 and values.get("reverse_kl", 0) >= 0


def test_the_run_record_has_every_stage(project: Path) -> None:
    record = json.loads((project / "metrics/run.json").read_text())
    assert list(record["stages"]) == sorted(STAGES)
    assert {stage["outcome"] for stage in record["stages"].values()} == {"ran"}
    assert 100 < record["peak_rss_mib"] < 6 * 1024
    assert 0 < sum(stage["wall_s"] for stage in record["stages"].values()) <= record["wall_s"]
    assert "metrics/run.json" in command(project, "git", "status", "--ignored", "--short").stdout


def test_every_row_is_accounted_for(project: Path) -> None:
    rows = json.loads((project / "metrics/prepare.json").read_text())["rows"]
    lines = (project / "data/prepared/quarantine.jsonl").read_text().splitlines()
    assert rows["accepted"] + rows["quarantined"] == rows["input"]
    assert rows["quarantined"] == len(lines) > 0  # max_train_rows is small


def test_a_second_repro_runs_nothing_and_the_status_is_clean(project: Path) -> None:
    assert ran(dvc(project, "repro")) == []
    assert "up to date" in dvc(project, "status")


@pytest.mark.parametrize(
    ("knob", "value", "expected"),
    [("report.num_examples", 1, ["report"]), ("distill.rollout.temperature", 1.1, ["distill", "evaluate", "report"])],
)
def test_an_edited_knob_reruns_only_the_stages_that_read_it(
    project: Path, knob: str, value: Any, expected: list[str]
) -> None:
    before = (project / "params.yaml").read_text()
    set_knob(project, knob, value)
    assert ran(dvc(project, "repro")) == expected
    assert knob in dvc(project, "params", "diff")
    assert "metrics/report.json" in dvc(project, "metrics", "diff", "--all") or expected == ["report"]
    assert "index.html" in dvc(project, "plots", "diff", "--out", "state/plots")
    (project / "params.yaml").write_text(before)
    assert ran(dvc(project, "repro")) == []  # restored from the cache
    assert "up to date" in dvc(project, "status")


def test_tracking_is_no_input_of_any_stage(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    set_knob(project, "tracking.experiment", "other")
    assert ran(dvc(project, "repro")) == []
    (project / "params.yaml").write_text(before)


def test_mlflow_holds_one_parent_with_a_child_per_stage(project: Path) -> None:
    code = (
        "import json, mlflow\n"
        "client = mlflow.MlflowClient('sqlite:///mlflow.db')\n"
        "experiment = client.get_experiment_by_name('minillm').experiment_id\n"
        "runs = client.search_runs([experiment])\n"
        "parents = [r for r in runs if r.data.tags.get('kind') == 'pipeline']\n"
        "oldest = min(parents, key=lambda r: r.info.start_time)\n"
        "own = [r for r in runs if r.data.tags.get('mlflow.parentRunId') == oldest.info.run_id]\n"
        "distill = next(r for r in own if r.info.run_name == 'distill')\n"
        "history = client.get_metric_history(distill.info.run_id, 'kl/reverse')\n"
        "speed = {k: [m.step for m in client.get_metric_history(distill.info.run_id, k)]\n"
        "         for k in distill.data.metrics if k.startswith(('time/', 'padding/', 'teacher/', 'memory/'))}\n"
        "print(json.dumps({'stages': [r.info.run_name for r in own], 'status': oldest.info.status,\n"
        "  'lr': distill.data.params['distill.optimizer.learning_rate'], 'steps': [m.step for m in history],\n"
        "  'values': [m.value for m in history], 'tags': sorted(distill.data.tags),\n"
        "  'final': oldest.data.metrics, 'speed': speed}))\n"
    )
    found = json.loads(command(project, sys.executable, "-c", code).stdout.splitlines()[-1])
    assert sorted(found["stages"]) == sorted(STAGES) and found["status"] == "FINISHED"
    assert found["lr"] == "3e-05" and found["steps"] == [1, 2]
    assert {name: found["speed"].get(name) for name in SPEED} == {name: [1, 2] for name in SPEED}  # of every phase
    assert {"mlflow.source.git.commit", "dvc.stage"} <= set(found["tags"])
    curve = [line.split("\t") for line in (project / "plots/distill.tsv").read_text().splitlines()]
    column = curve[0].index("kl/reverse")
    assert found["values"] == pytest.approx([float(row[column]) for row in curve[2:]])
    assert found["final"] == recorded_finals(STAGES, project)  # what a pipeline with all stages cached would give


def test_the_prefect_flow_makes_the_same_bytes_and_leaves_a_clean_status(
    project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = new_repository(tmp_path_factory.mktemp("flow"))
    result = command(root, sys.executable, "-m", "flows")
    assert "Traceback" not in result.stdout + result.stderr
    assert (root / "dvc.lock").read_text() == command(project, "git", "show", "HEAD:dvc.lock").stdout
    assert "up to date" in dvc(root, "status")


def test_an_experiment_with_a_changed_knob_runs_and_is_listed(project: Path) -> None:
    dvc(project, "exp", "run", "--name", "half", "-S", "distill.rollout.teacher_mix_alpha=0.5")
    listed = dvc(project, "exp", "show", "--csv")
    assert "half" in listed and "0.5" in listed


def test_a_stage_whose_params_are_edited_meanwhile_fails_and_is_not_recorded(project: Path) -> None:
    lock = (project / "dvc.lock").read_text()
    code = (
        "import tasks.runner as runner, tasks.report as report, re\nfrom pathlib import Path\n"
        "original = report.run\n"
        "def run(report, tracker):\n"
        "    original(report, tracker)\n"
        "    path = Path('params.yaml')\n"
        "    path.write_text(re.sub(r'num_examples: \\d+', 'num_examples: 7', path.read_text()))\n"
        "report.run = run\n"
        "runner.run_stage('report')\n"
    )
    before = (project / "params.yaml").read_text()
    result = command(project, sys.executable, "-c", code, check=False)
    (project / "params.yaml").write_text(before)
    assert result.returncode != 0 and "edited while it ran" in result.stderr
    assert (project / "dvc.lock").read_text() == lock


@pytest.mark.parametrize(
    ("knob", "value", "expected"),
    [
        ("distill.rollout.teacher_mix_alpha", 1.5, "distill.rollout.teacher_mix_alpha"),
        ("data.num_builtin_rows", 3, "data.num_builtin_rows"),
    ],
)
def test_a_wrong_knob_ends_make_run_in_one_line(project: Path, knob: str, value: Any, expected: str) -> None:
    before = (project / "params.yaml").read_text()
    set_knob(project, knob, value)
    result = command(project, sys.executable, "-m", "flows.local", check=False)
    (project / "params.yaml").write_text(before)
    assert result.returncode == 2 and expected in result.stderr and "Traceback" not in result.stderr
