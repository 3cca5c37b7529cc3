"""The real pipeline on a tiny random teacher: dvc repro, its cache, experiments, MLflow and the Prefect flow."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from ruamel.yaml import YAML

from flows.environment import child_environment
from minillm.embedded import load_embedded_tokenizer
from minillm.models import save_model
from tasks.runner import STAGES
from tests.imports import ROOT

pytestmark = pytest.mark.pipeline

_SFT = {"num_steps": 2, "batch_size": 4, "micro_batch_tokens": 64, "validate_every_steps": 1}
_OVERLAY: dict[str, Any] = {
    "teacher_model": {"source": "path", "location": "tiny-teacher"},
    "student_model": {"num_layers": 2, "num_calibration_rows": 8},
    "data": {
        "num_builtin_rows": 1000,
        "num_validation_rows": 8,
        "num_evaluation_rows": 9,
        "max_train_rows": 64,
        "corpus_block_tokens": 32,
        "max_corpus_blocks": 8,
    },
    "teacher": {"sft": _SFT},
    "warmup": {"sft": _SFT},
    "distill": {
        "num_phases": 2,
        "rollout": {"rollouts_per_phase": 4, "batch_size": 4, "max_response_tokens": 6},
        "optimizer": {"minibatch_size": 2, "micro_batch_tokens": 64, "learning_rate": 3.0e-5},
        "validation": {"every_phases": 1, "num_rows": 4},
    },
    "evaluate": {"batch_size": 4, "sampling_seeds": [10, 20], "max_response_tokens": 6},
    "report": {"num_examples": 2},
}


def tiny_teacher(directory: Path) -> None:
    """Save a random Llama of a few thousand weights a layer under the embedded tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = load_embedded_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            num_key_value_heads=1,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
        save_model(LlamaForCausalLM(config), tokenizer, directory)


def command(root: Path, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        arguments, cwd=root, env=child_environment({}), capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0 or not check, f"{arguments}\n{result.stdout[-3000:]}\n{result.stderr[-3000:]}"
    return result


def dvc(root: Path, *arguments: str) -> str:
    return command(root, sys.executable, "-m", "dvc", *arguments).stdout


def set_knob(root: Path, path: str, value: Any) -> None:
    yaml = YAML()
    content = yaml.load(root / "params.yaml")
    *parents, key = path.split(".")
    section = content
    for parent in parents:
        section = section[parent]
    section[key] = value
    yaml.dump(content, root / "params.yaml")


def new_repository(root: Path) -> Path:
    """Return a git repository with this project's tracked files, the tiny teacher and tiny params."""
    files = command(ROOT, "git", "ls-files", "--cached", "--others", "--exclude-standard").stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file() and not name.startswith(("metrics/", "plots/", "dvc.lock")):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, root / name)
    tiny_teacher(root / "tiny-teacher")
    with (root / "configs/tiny.yaml").open("w") as file:
        YAML().dump(_OVERLAY, file)
    command(root, sys.executable, "-m", "tasks", "preset", "tiny")
    with (root / ".gitignore").open("a") as file:
        file.write("/tiny-teacher/\n")
    command(root, "git", "init", "--quiet")
    commit(root, "start")
    return root


def commit(root: Path, message: str) -> None:
    command(root, "git", "add", "--all")
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    command(root, "git", *identity, "commit", "--quiet", "--message", message)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository in which `make run`'s command has run once, committed."""
    root = new_repository(tmp_path_factory.mktemp("project"))
    result = command(root, sys.executable, "-m", "flows.local")
    assert "reports/report.html" in result.stdout
    commit(root, "run")
    return root


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
        "print(json.dumps({'stages': [r.info.run_name for r in own], 'status': oldest.info.status,\n"
        "  'lr': distill.data.params['distill.optimizer.learning_rate'], 'steps': [m.step for m in history],\n"
        "  'values': [m.value for m in history], 'tags': sorted(distill.data.tags), 'final': oldest.data.metrics}))\n"
    )
    found = json.loads(command(project, sys.executable, "-c", code).stdout.splitlines()[-1])
    assert sorted(found["stages"]) == sorted(STAGES) and found["status"] == "FINISHED"
    assert found["lr"] == "3e-05" and found["steps"] == [1, 2]
    assert {"mlflow.source.git.commit", "dvc.stage"} <= set(found["tags"])
    curve = [line.split("\t") for line in (project / "plots/distill.tsv").read_text().splitlines()]
    column = curve[0].index("kl/reverse")
    assert found["values"] == pytest.approx([float(row[column]) for row in curve[2:]])
    report = json.loads((project / "metrics/report.json").read_text())
    assert report["student"]["rougeL"] in [pytest.approx(value) for value in found["final"].values()]


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
