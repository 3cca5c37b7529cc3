"""The layers, the graph and the params file agree with the code."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from subprocess import run

import pytest

from minillm.config import Params
from minillm.params import load_params, parse_params, read_yaml
from tasks.preset import merged_params
from tasks.runner import STAGES, stage_sections
from tests.imports import ROOT, import_closure, imported_names, third_party

GRAPH = read_yaml(ROOT / "dvc.yaml")["stages"]
FORBIDDEN = {
    "minillm": {"prefect", "dvc", "mlflow", "tasks", "flows"},
    "tasks": {"prefect", "dvc", "flows"},
    "flows": {"torch", "transformers", "mlflow"},
    "benchmarks": {"prefect", "dvc", "mlflow", "flows"},
}


def python_files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", FORBIDDEN)
def test_a_layer_imports_nothing_above_it(package: str) -> None:
    for path in python_files(package):
        names = {name.split(".")[0] for name in imported_names(path)}
        assert not names & FORBIDDEN[package], path


def test_three_files_import_mlflow_one_for_runs_one_for_the_registry_one_for_what_can_be_loaded() -> None:
    files = [path for package in FORBIDDEN for path in python_files(package)]
    importing = [path.name for path in files if "mlflow" in third_party(path)]
    assert importing == ["loadable_model.py", "mlflow_store.py", "registry_store.py"]


def test_the_graph_has_the_stages_in_order() -> None:
    assert tuple(GRAPH) == STAGES


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_params_it_reads(stage: str) -> None:
    sections = stage_sections(importlib.import_module(f"tasks.{stage}").run)
    assert GRAPH[stage]["params"] == sections
    assert set(sections) <= set(Params.model_fields)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_declares_the_code_it_imports(stage: str) -> None:
    declared = {dependency for dependency in GRAPH[stage]["deps"] if dependency.endswith(".py")}
    imported = {str(path.relative_to(ROOT)) for path in import_closure(ROOT / "tasks" / f"{stage}.py")}
    assert declared == imported
    compiled = {dependency for dependency in GRAPH[stage]["deps"] if dependency.endswith((".c", ".h"))}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "minillm" / "kernels").glob("*.[ch]")}
    assert compiled == (sources if "minillm/kernels/compiled.py" in imported else set())


def test_every_knob_but_tracking_reaches_a_stage() -> None:
    read = {section for stage in STAGES for section in GRAPH[stage]["params"]}
    assert read == set(Params.model_fields) - {"tracking", "checkpoint"}


def test_no_value_of_a_params_file_reaches_a_shell() -> None:
    for stage in STAGES:
        assert re.fullmatch(r"python -m tasks [a-z]+", GRAPH[stage]["cmd"])


def test_the_params_file_is_complete_and_every_knob_is_explained() -> None:
    load_params(ROOT / "params.yaml")
    knobs = [line for line in (ROOT / "params.yaml").read_text().splitlines() if re.match(r"\s*\w+: *[^#\s]", line)]
    assert len(knobs) > 100
    assert [line for line in knobs if "#" not in line] == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_merges_into_valid_params(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    merged = merged_params(path)
    assert parse_params(merged, path.name) != load_params(ROOT / "params.yaml")


def test_no_pickle_no_remote_code_no_shell() -> None:
    banned = ("import pickle", "trust_remote_code=True", "shell=True", "eval(", "exec(", "torch.load(", "yaml.load(")
    for package in FORBIDDEN:
        for path in python_files(package):
            text = path.read_text().replace(".eval()", "")
            assert not [word for word in banned if word in text], path


def test_help_of_the_stages_imports_no_heavy_library() -> None:
    code = (
        "import sys, tasks.__main__ as m\ntry: m.main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'mlflow', 'prefect', 'transformers', 'pandas'} & set(sys.modules)))"
    )
    result = run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_git_tracks_nothing_that_dvc_writes() -> None:
    outs = [out for stage in GRAPH.values() for out in stage["outs"]]
    tracked = run(["git", "ls-files", *outs], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert tracked == ""
    raw = run(["git", "ls-files", "data/raw"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert raw.split() == ["data/raw/README.md"]
