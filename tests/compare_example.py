"""A repository for the tests of the comparison, with stages and a `dvc exp run` that are quick stand-ins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows import compare
from flows.compare_variants import with_settings
from minillm.config import Params
from minillm.params import load_params
from tests.scratch_repository import run_in, set_param

ROOT = Path(__file__).parents[1]
STAGE = """
import json, os, sys, time
from pathlib import Path
from ruamel.yaml import YAML

name = sys.argv[1]
params = YAML(typ="safe").load(Path("params.yaml").read_text())
seed, method = params["seed"], params["distill"]["method"]
if name == "distill" and method in os.environ.get("FAILING", "").split():
    sys.exit("the stand-in was told to fail")
if name == "distill" and method == os.environ.get("SLEEPING"):
    Path("started").touch()
    time.sleep(600)

def score(rouge, kl):
    sampled = {"rougeL": rouge, "rougeL_std": 0.5, "length_mean": 9.0, "eos_rate": 1.0, "distinct_4": 0.25}
    return {"test": {"num_rows": 3, "sampled": sampled, **({} if kl is None else {"reverse_kl": kl})}}

if name == "prepare":
    Path("prepared").mkdir()
    Path("prepared/rows.txt").write_text(str(seed))
if name == "distill":
    Path("student.txt").write_text(f"{seed} {method}")
    Path("state/cost").mkdir(parents=True, exist_ok=True)
    cost = {"wall_s": 1.0, "cpu_s": 100.0 + seed, "peak_rss_mib": 1.0}
    Path("state/cost/distill.json").write_text(json.dumps(cost))
if name == "evaluate":
    seed, method = Path("student.txt").read_text().split()
    models = {"teacher": (60.0 + int(seed), None), "warmup": (40.0, 1.5), "student": (50.0 + len(method), 1.0)}
    Path("metrics").mkdir(exist_ok=True)
    Path("metrics/evaluate.json").write_text(json.dumps({model: score(*pair) for model, pair in models.items()}))
    final = {model: {"rougeL": pair[0], **({} if pair[1] is None else {"reverse_kl": pair[1]})}
             for model, pair in models.items()}
    Path("metrics/report.json").write_text(json.dumps(final))
"""
GRAPH = """
stages:
  prepare:
    cmd: python stage.py prepare
    params: [seed]
    outs: [prepared]
  distill:
    cmd: python stage.py distill
    params: [seed, distill]
    deps: [prepared]
    outs: [student.txt]
  evaluate:
    cmd: python stage.py evaluate
    params: [evaluate]
    deps: [student.txt]
    metrics:
      - metrics/evaluate.json: {cache: false}
      - metrics/report.json: {cache: false}
"""

COMMIT = ("git", "-c", "user.name=test", "-c", "user.email=test@localhost", "commit", "--quiet", "--message", "start")


def make_repository(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with params.yaml and a graph, in which `dvc exp run` is replaced by something quick."""
    (root / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (root / "dvc.yaml").write_text(GRAPH)
    (root / ".gitignore").write_text((ROOT / ".gitignore").read_text())
    run_in(root, "git", "init", "--quiet", "--initial-branch", "main")
    run_in(root, "git", "add", ".")
    run_in(root, *COMMIT)
    monkeypatch.chdir(root)
    monkeypatch.setattr(compare, "run_experiment", stand_in)
    monkeypatch.setattr(compare, "end_by_signal", lambda: None)
    return root


def stand_in(root: Path, name: str, settings: dict[str, Any]) -> Params:
    """Leave what `dvc exp run` leaves when it is killed: params, lock and index changed, git's HEAD detached."""
    write_params(root, settings)
    (root / "dvc.lock").write_text(name)
    write_metrics(root, {"teacher": 60.0, "warmup": 40.0, "student": 50.0})
    run_in(root, "git", "add", ".")
    run_in(root, "git", "checkout", "--quiet", "--detach")
    return load_params(root / "params.yaml")


def write_params(root: Path, settings: dict[str, Any]) -> None:
    yaml = YAML()
    with (root / "params.yaml").open("r+") as file:
        content = with_settings(yaml.load(file), settings)
        file.seek(0)
        file.truncate()
        yaml.dump(content, file)


def write_metrics(root: Path, rouge: dict[str, float], distinct: float = 0.5) -> None:
    """Write metrics with two evaluation sets, of which the second has a distinct-4 that is 0.2 higher."""
    (root / "metrics").mkdir(exist_ok=True)
    report = {name: {"rougeL": value, "reverse_kl": value / 50} for name, value in rouge.items()}
    del report["teacher"]["reverse_kl"]
    (root / "metrics/report.json").write_text(json.dumps(report))
    evaluate: dict[str, dict[str, Any]] = {}
    for name, value in rouge.items():
        for number, set_name in enumerate(("a", "b")):
            sampled = {"rougeL": value, "rougeL_std": 0.1, "length_mean": 9.0, "eos_rate": 1.0}
            sampled["distinct_4"] = distinct + 0.2 * number
            evaluate.setdefault(name, {})[set_name] = {"sampled": sampled, "reverse_kl": value / 50}
    (root / "metrics/evaluate.json").write_text(json.dumps(evaluate))


def state(root: Path) -> dict[str, Any]:
    """Return all that a comparison must give back."""
    files = [
        path
        for path in root.rglob("*")
        if path.is_file() and not {".git", ".dvc", "state", "mlartifacts"} & set(path.parts)
    ]
    made = ("compare.json", "compare.md", "compare.svg", "mlflow.db")
    return {
        "files": {str(path): path.read_bytes() for path in files if path.name not in made},
        "status": run_in(root, "git", "status", "--short").stdout,
        "index": run_in(root, "git", "ls-files", "--stage").stdout,
        "branch": run_in(root, "git", "symbolic-ref", "HEAD").stdout,
        "stash": run_in(root, "git", "stash", "list").stdout,
    }


def edit(root: Path) -> None:
    """Give params.yaml an edit that is staged, and another one that is not."""
    set_param(root, "report.num_examples", 3)
    run_in(root, "git", "add", "params.yaml")
    set_param(root, "report.num_examples", 4)
